"""``normalis fit``: learn from normal images."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normalis.cli.arguments import Data, PatientPattern, Where
from normalis.cli.calibrate import say_calibration
from normalis.cli.console import Progress as Bar
from normalis.cli.console import console, errors, escape, progress
from normalis.cli.data import describe, open_data, open_unlabelled, report_skipped, select
from normalis.cli.values import options_of, use_threads
from normalis.errors import CalibrationWarning
from normalis.errors.words import counted

if TYPE_CHECKING:
    from normalis.datasets import Dataset
    from normalis.detector import AnomalyDetector
    from normalis.training.loop import Progress

__all__ = ["fit"]


#: Panels of the help; what is used daily stands before them.
_DATA, _MODEL, _CALIBRATION, _MACHINE = "Data", "Model", "Calibration", "Machine"


def fit(
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="Run folder to write.")],
    method: Annotated[
        str, typer.Option(help="Method; see `normalis methods`. panel: several, with one score.")
    ] = "panel",
    members: Annotated[
        str | None,
        typer.Option(
            help="Of the panel, by default ae-u,feature-knn,feature-gaussian,spade. One alone is "
            "that method: --members ae-u needs no pretrained weights."
        ),
    ] = None,
    unlabelled: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Images of which nothing is known, for a method that learns from them beside the "
            "normal ones: ddad. Of other patients than the normal and the test images.",
        ),
    ] = None,
    patient_pattern: PatientPattern = None,
    where: Where = None,
    calibration: Annotated[
        str,
        typer.Option(
            help="split holds out normals for p-values; cv+ trains one model per fold and holds "
            "out none (few images); auto chooses by their number; none trains on all, without "
            "p-values."
        ),
    ] = "auto",
    recipe: Annotated[
        str,
        typer.Option(
            help="paper (250 epochs), fast (83, more where images are few; a little worse), or "
            "auto: fast in a panel, else paper."
        ),
    ] = "auto",
    keep_similar: Annotated[
        bool,
        typer.Option(
            "--keep-similar/--no-keep-similar",
            help="Keep small pictures of the normal images in the run, to show beside images that "
            "resemble them. They are pictures of other people, without names or ids.",
        ),
    ] = True,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a finished run.")] = False,
    normal_class: Annotated[
        list[str] | None,
        typer.Option(
            "--normal-class",
            rich_help_panel=_DATA,
            help="Folder or label of DATA that is normal, where these name classes; repeatable, "
            "'*' for all.",
        ),
    ] = None,
    unlabelled_overlap: Annotated[
        str,
        typer.Option(
            rich_help_panel=_DATA,
            help="What to do about unlabelled images that are normal or test images too, or of "
            "their patients: refuse, or leave-out.",
        ),
    ] = "refuse",
    ignore_tables: Annotated[
        bool,
        typer.Option(
            "--ignore-tables",
            rich_help_panel=_DATA,
            help="Read a folder as if no table or list lay in it.",
        ),
    ] = False,
    image_size: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=_DATA,
            help="Side in pixels, a multiple of 16; by default 64, of feature methods 128.",
        ),
    ] = None,
    channels: Annotated[int, typer.Option(rich_help_panel=_DATA, help="1 (grey) or 3.")] = 1,
    plane: Annotated[
        str, typer.Option(rich_help_panel=_DATA, help="axial, coronal or sagittal (volumes).")
    ] = "axial",
    slices: Annotated[
        tuple[float, float],
        typer.Option(rich_help_panel=_DATA, help="Range of slices of a volume, 0 to 1."),
    ] = (0.0, 1.0),
    window: Annotated[
        tuple[float, float] | None,
        typer.Option(
            rich_help_panel=_DATA,
            help="Values that become 0 and 1, for images deeper than 8 bits.",
        ),
    ] = None,
    percentiles: Annotated[
        tuple[float, float],
        typer.Option(
            rich_help_panel=_DATA, help="Percentiles of training values that become 0 and 1."
        ),
    ] = (0.5, 99.5),
    margin: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=0.4,
            rich_help_panel=_DATA,
            help="Share of the side at each edge that is blanked in every image: for text, "
            "letterboxes or film edges that `normalis check` names.",
        ),
    ] = 0.0,
    standardize: Annotated[
        bool,
        typer.Option(
            "--standardize",
            rich_help_panel=_DATA,
            help="Remove each image's brightness and contrast.",
        ),
    ] = False,
    latent_dim: Annotated[
        str,
        typer.Option(
            rich_help_panel=_MODEL,
            help="Size of the bottleneck, the paper's d; auto: the method's own default.",
        ),
    ] = "auto",
    backbone: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_MODEL,
            help="Feature network of a feature method: efficientnet-lite0, or a file of your own "
            "(.onnx or TorchScript, docs/howto/own_backbone.md).",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(rich_help_panel=_MODEL, help="Setting of the method, NAME=VALUE; repeatable."),
    ] = None,
    scorer: Annotated[
        str,
        typer.Option(
            rich_help_panel=_MODEL,
            help="How the residual is read; auto: median, or native where a method has a score "
            "of its own. The paper's is native.",
        ),
    ] = "auto",
    reduction: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_MODEL,
            help="Map to number: mean, max, top:0.01, quantile:0.95; by default the scorer's own.",
        ),
    ] = None,
    scorer_option: Annotated[
        list[str] | None,
        typer.Option(rich_help_panel=_MODEL, help="Setting of the scorer, NAME=VALUE; repeatable."),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=_MODEL,
            help="Passes over the training images; by default the recipe's own.",
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(rich_help_panel=_MODEL, help="Images per training step.")
    ] = 64,
    learning_rate: Annotated[
        float | None,
        typer.Option(rich_help_panel=_MODEL, help="Of Adam; by default the recipe's own."),
    ] = None,
    keep_epoch: Annotated[
        str,
        typer.Option(
            rich_help_panel=_MODEL,
            help="last, or best: the epoch that tells held-out normal images best from the same "
            "with a change.",
        ),
    ] = "last",
    folds: Annotated[
        int, typer.Option(rich_help_panel=_CALIBRATION, help="Of --calibration cv+.")
    ] = 5,
    precision: Annotated[
        str, typer.Option(rich_help_panel=_MACHINE, help="auto, float32 or bfloat16.")
    ] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            rich_help_panel=_MACHINE,
            help="Threads of the processor; by default as many as pay, measured.",
        ),
    ] = None,
) -> None:
    """Learn from the normal training images of DATA; an interrupted fit goes on."""
    use_threads(threads)
    options = _with_backbone(options_of(option), backbone, method)
    dataset = _open(data, patient_pattern, normal_class, ignore_tables, where or ())
    from normalis.detector import AnomalyDetector

    detector = AnomalyDetector(
        method=method,
        latent_dim=_whole_or_rule(latent_dim),
        image_size=image_size,
        channels=channels,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        recipe=recipe,
        precision=precision,
        standardize=standardize,
        scorer=scorer,
        reduction=reduction,
        scorer_options=options_of(scorer_option),
        calibration=calibration,
        folds=folds,
        plane=plane,
        slice_range=slices,
        window=window,
        percentiles=percentiles,
        margin=margin,
        random_state=seed,
        device=device,
        method_options=options,
        where=where or (),
        members=members.split(",") if members else None,
        keep_similar=keep_similar,
        keep_epoch=keep_epoch,
    )
    _notice_latent(method, latent_dim)
    beside = open_unlabelled(unlabelled, patient_pattern, ignore_tables=ignore_tables)
    _fit(detector, dataset, beside, unlabelled_overlap, out, overwrite=overwrite)


def _open(
    data: Path,
    patient_pattern: str | None,
    normal_class: list[str] | None,
    ignore_tables: bool,
    where: list[str] | tuple[str, ...],
) -> Dataset:
    """Open the normal images, and say what they are."""
    dataset = open_data(
        data, patient_pattern, normal_class=normal_class, ignore_tables=ignore_tables
    )
    dataset, _ = select(dataset, where)
    describe(dataset)
    if all(sample.split == "unlabelled" for sample in dataset.to_train_on()):
        errors.print(f"  all {len(dataset.samples)} are taken as normal, since fit was given them")
    return dataset


def _fit(
    detector: AnomalyDetector,
    dataset: Dataset,
    beside: Dataset | None,
    overlap: str,
    out: Path,
    *,
    overwrite: bool,
) -> None:
    """Fit, with a bar, and say what came of it."""
    if footprint := detector.footprint(len(dataset.to_train_on())):
        errors.print(f"  memory: {footprint}")
    with progress(f"fit {detector.method}") as bar, warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)  # said below
        detector.fit(
            dataset,
            unlabelled=beside,
            unlabelled_overlap=overlap,
            run=out,
            overwrite=overwrite,
            progress=_epochs(bar),
        )
    report_skipped(detector.skipped_, out / "skipped.csv")
    _summarise_fit(detector, out)


def _whole_or_rule(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdecimal() else text


def _notice_latent(method: str, latent_dim: str) -> None:
    from normalis.models import model_class

    if latent_dim != "auto" and not model_class(method).has_latent:
        errors.print(f"note: {method} has no latent vector; --latent-dim {latent_dim} is ignored")


def _with_backbone(
    options: dict[str, Any] | None, backbone: str | None, method: str
) -> dict[str, Any] | None:
    """Add the feature network to the options of a method that has one."""
    if backbone is None:
        return options
    from normalis.models import model_class

    if not hasattr(model_class(method).Settings, "backbone"):
        raise typer.BadParameter(
            f"--backbone needs a method on features, such as spade, got --method {method}"
        )
    return {**(options or {}), "backbone": backbone}


def _epochs(bar: Bar) -> Callable[[Progress], None]:
    def update(step: Progress) -> None:
        losses = "  ".join(f"{name} {value:.4g}" for name, value in step.losses.items())
        bar.update(step.epoch, step.epochs, losses)

    return update


def _summarise_fit(detector: AnomalyDetector, out: Path) -> None:
    info = detector.info_
    console.print(
        f"fitted {counted(info['data']['train_images'], 'normal image')} in {info['fit_s']:.0f} s; "
        f"{info['data']['calibration_images']} scored unseen for calibration"
    )
    if others := info["data"].get("unlabelled"):
        console.print(
            f"learned from {counted(others['images'], 'unlabelled image')} as well; "
            f"{others['left_out']} left out, since known",
            soft_wrap=True,
        )
    if "members" in info:
        console.print(f"panel of {', '.join(info['members'])}", soft_wrap=True)
        for name, reason in info["left_out"].items():
            console.print(f"note: {name} is left out: {escape(reason)}", soft_wrap=True)
    if detector.history_:
        used = detector.training_
        console.print(
            f"trained by the recipe {used.recipe}: {counted(used.epochs, 'epoch')}, "
            f"learning rate {used.learning_rate:g}, {counted(info['threads'], 'thread')}"
        )
    if measured := info.get("measured"):
        said = ", ".join(f"{name} {value:.4g}" for name, value in measured.items())
        console.print(f"measured on held-out normal images: {said}", soft_wrap=True)
    if kept := detector.fitted_.similar:
        side = kept.pixels.shape[-1]
        console.print(
            f"kept in the run: pictures of {counted(len(kept.rows), 'normal image')}, "
            f"{side} x {side}, without names or ids, to show beside similar ones; "
            "--no-keep-similar keeps none",
            soft_wrap=True,
        )
    say_calibration(detector.fitted_)
    console.print(f"run: {out}\nnext: normalis score {out} IMAGES --out OUT", soft_wrap=True)
