"""The command about what normal images hold: fingerprint. It parses, calls, prints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from normalis.cli.console import console, errors, table

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
    from normalis.datasets.levels import plural
    from normalis.loading import held_out
    from normalis.loading.arrays import ImageSettings, to_unit

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
