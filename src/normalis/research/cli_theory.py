"""The commands about what normal images hold: fingerprint, explain. They parse, call, print."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normalis.cli.console import console, errors, table
from normalis.cli.values import rate_found

if TYPE_CHECKING:
    from normalis.entropy import Fingerprint
    from normalis.entropy.resampling import Estimate

__all__ = ["app"]

app = typer.Typer()


@app.command()
def fingerprint(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Folder, data.json, manifest or array.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="JSON file; the figure goes beside it as PNG.")
    ] = None,
    image_size: Annotated[int, typer.Option(help="Side in pixels.")] = 64,
    channels: Annotated[int, typer.Option(help="1 (grey) or 3.")] = 1,
    plane: Annotated[str, typer.Option(help="axial, coronal or sagittal (volumes).")] = "axial",
    slices: Annotated[
        tuple[float, float], typer.Option(help="Range of slices of a volume, 0 to 1.")
    ] = (0.0, 1.0),
    patients: Annotated[
        str | None,
        typer.Option(help="Pattern that finds the patient in a file name, group 1 is the id."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the half samples behind the intervals.")] = 0,
) -> None:
    """Say what the normal training images of DATA hold: rate, spectrum, intrinsic dimension."""
    from normalis import entropy
    from normalis.datasets import open_dataset, patients_from_pattern
    from normalis.loading import held_out
    from normalis.loading.arrays import ImageSettings, to_unit
    from normalis.loading.units import plural

    dataset = open_dataset(data)
    if patients:
        dataset = patients_from_pattern(dataset, patients)
    settings = ImageSettings(
        image_size=image_size, channels=channels, plane=plane, slice_range=slices
    )
    with errors.status("reading"):
        loaded = held_out.normal_images(dataset, settings).train
    units = held_out.units_of(loaded)
    with errors.status("measuring"):
        found = entropy.fingerprint(to_unit(loaded.pixels), groups=units.member, seed=seed)
    if loaded.skipped:
        errors.print(
            f"[yellow]{len(loaded.skipped)} images could not be read and were skipped[/]",
            markup=True,
        )
    _print_fingerprint(dataset.name, found, plural(2, units.level)[2:])
    if out is not None:
        _write_fingerprint(found, out)


@app.command()
def explain(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `fit` wrote.")],
) -> None:
    """Say why RUN has the latent dimension that it has, and what that rests on."""
    from normalis.research.selection import Selection
    from normalis.storage import RunFolder

    body = RunFolder(run).read_settings()
    width, kept = body["model_settings"]["latent_dim"], body["info"].get("selection")
    if kept is None:
        console.print(f"latent dimension {width}: {_unchosen(body)}", soft_wrap=True)
        return
    console.print(f"latent dimension {width}, without any label, by the rule {kept['rule']}\n")
    chosen = Selection.from_dict(kept)
    columns = [f"{c} *" if c == chosen.choice else c for c in chosen.candidates]
    rows = [[name, *(f"{v:.1f}" for v in values)] for name, values in chosen.table.items()]
    if rows:
        title = "AUROC points lost against the best, by the closed form"
        console.print(table(title, ["", *columns], rows))
    for reason in chosen.reasons:
        console.print(f"- {reason}", soft_wrap=True)
    console.print(
        f"- to overrule it: fit again with --latent-dim NUMBER\n- as curves: normalis report {run}",
        soft_wrap=True,
    )


def _unchosen(body: Mapping[str, Any]) -> str:
    """Say why no rule chose the latent dimension."""
    from normalis.models import model_class

    method, given = body["params"]["method"], body["params"]["latent_dim"]
    if not model_class(method).has_latent:
        return f"{method} has no latent vector"
    rate, held_out = (body["model_settings"].get(name) for name in ("rate", "held_out"))
    if rate is not None:
        whose = "held-out" if held_out else "training"
        said = f"{method} is limited by its rate, {rate:g} nats on {whose} normal images, instead"
        found = rate_found(body["info"])
        return f"{said}; others, neither seen nor watched: {found}" if found else said
    if given == "auto":
        return f"the width that {method} has, wide enough not to matter; something else limits it"
    return (
        "it was given, not chosen. Fit with --latent-dim auto for a table of what a latent "
        "dimension stakes on the size of lesions, or see docs/selection.md"
    )


def _print_fingerprint(name: str, found: Fingerprint, unit: str) -> None:
    rows = [
        ["normal training images", str(found.images)],
        [unit, str(found.groups)],
        ["distinct images (correlation below 0.999)", str(found.distinct)],
        ["near copies", f"{found.near_copies:.1%}"],
        ["variance per pixel, intensities in [0, 1]", str(found.variance)],
        ["effective rank", str(found.effective_rank)],
        ["participation ratio", str(found.participation_ratio)],
        *[[f"directions for {s} of the variance", str(n)] for s, n in found.components.items()],
        ["intrinsic dimension, TwoNN", _say(found.two_nn)],
        ["intrinsic dimension, Levina-Bickel", _say(found.levina_bickel)],
        ["power against spatial frequency, exponent", _say(found.power_slope)],
    ]
    console.print(table(f"Normal images: {name}", ["", "value [95 % interval]"], rows))
    curve = zip(
        found.distortions, found.rate, found.rate_heldout, found.effective_dimension, strict=True
    )
    rates = [
        [f"{255 * math.sqrt(d):.0f}", _say(own), _say(held), _say(dimension)]
        for d, own, held, dimension in curve
    ]
    columns = ["r.m.s. error, grey levels", "own spectrum", "held out", "effective dimension"]
    console.print(table("Rate R(D): nats per image, Gaussian upper bound", columns, rates))
    lesions = [
        [f"{row['scale_px']:.0f}", _say_rank(row), f"{100 * row['predicted_auroc']:.1f}"]
        for row in found.lesion_ranks
    ]
    if lesions:
        columns = ["blob, pixels", "best rank", "predicted AUROC"]
        console.print(table("Best linear capacity by lesion size, closed form", columns, lesions))
    for note in found.notes:
        console.print(f"note: {note}", soft_wrap=True)
    console.print(
        "These numbers do not name a capacity: that depends on the lesion as well (last table).",
        soft_wrap=True,
    )


def _say(value: Estimate | float) -> str:
    """Return a number with its interval, and a dash where an estimator refuses."""
    middle = value if isinstance(value, float) else value.value
    if math.isnan(middle):
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _say_rank(row: dict[str, float]) -> str:
    most = row["best_rank"] == row["most_tried"]
    return f"{row['best_rank']:.0f}" + " (most tried)" * most


def _write_fingerprint(found: Fingerprint, out: Path) -> None:
    from normalis.entropy.picture import draw_fingerprint
    from normalis.storage import write_atomically, write_json

    write_json(out, found.to_dict())
    picture = out.with_suffix(".png")
    figure = draw_fingerprint(found)
    write_atomically(picture, lambda part: figure.savefig(part, format="png"))
    console.print(f"numbers: {out}\nfigure: {picture}", soft_wrap=True)
