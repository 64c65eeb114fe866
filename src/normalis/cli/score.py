"""``normalis score``: a table, maps and pictures of new images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normalis.cli.arguments import (
    IgnoreTables,
    Network,
    NormalClass,
    PatientPattern,
    Run,
    Threads,
    Trust,
)
from normalis.cli.console import console, errors, escape, progress, shortened, table
from normalis.cli.data import describe, open_data, select
from normalis.cli.values import options_of, use_threads
from normalis.errors.words import counted

if TYPE_CHECKING:
    from rich.table import Table

    from normalis.fitted import FittedDetector
    from normalis.output.folder import ScoreSummary

__all__ = ["score"]


def score(
    run: Run,
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="Folder, file or data set.")],
    out: Annotated[Path, typer.Option("--out", help="Output folder to write.")],
    fpr: Annotated[float, typer.Option(help="Share of normals that may be flagged.")] = 0.05,
    fdr: Annotated[
        float | None,
        typer.Option(help="In patients.csv, flag so that at most this share of flags is false."),
    ] = None,
    maps: Annotated[bool, typer.Option(help="Write anomaly maps.")] = True,
    overlays: Annotated[bool, typer.Option(help="Write pictures.")] = True,
    all_overlays: Annotated[
        bool, typer.Option("--all-overlays", help="Pictures of all, even beyond 1,000 images.")
    ] = False,
    similar: Annotated[
        bool,
        typer.Option(help="Write the most similar normal images, where RUN keeps pictures."),
    ] = True,
    scorer: Annotated[
        str | None, typer.Option(help="Read the model another way; needs --normals.")
    ] = None,
    reduction: Annotated[
        str | None, typer.Option(help="With --scorer: mean, max, top:0.01, quantile:0.95.")
    ] = None,
    scorer_option: Annotated[
        list[str] | None, typer.Option(help="Setting of the scorer, NAME=VALUE; repeatable.")
    ] = None,
    normals: Annotated[
        Path | None, typer.Option(help="With --scorer: the data that RUN was fitted on.")
    ] = None,
    patient_pattern: PatientPattern = None,
    threads: Threads = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    engine: Annotated[
        str, typer.Option(help="torch, onnx (CPUs; for tens of thousands) or ray (a cluster).")
    ] = "torch",
    address: Annotated[
        str,
        typer.Option(help="Ray cluster; local starts one on this machine, auto finds one."),
    ] = "local",
    cpus_per_job: Annotated[float, typer.Option(help="Cores of one worker (ray).")] = 1.0,
    gpus_per_job: Annotated[float, typer.Option(help="Share of a GPU of one worker (ray).")] = 0.0,
    trust: Trust = False,
    normal_class: NormalClass = None,
    ignore_tables: IgnoreTables = False,
    backbone: Network = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace scores in OUT once the new are complete.")
    ] = False,
    pseudonyms: Annotated[
        Path | None,
        typer.Option(
            metavar="KEYFILE",
            help="Replace patients, accession numbers and UIDs in tables by a keyed hash; the key "
            "is made if the file is not there.",
        ),
    ] = None,
    relative_paths: Annotated[
        bool,
        typer.Option(
            "--relative-paths",
            help="Name files relative to IMAGES in tables and pages, not as given: for what is "
            "shared.",
        ),
    ] = False,
) -> None:
    """Score IMAGES: a table, anomaly maps and pictures in OUT."""
    use_threads(threads)
    from normalis.engines.cluster import Cluster
    from normalis.fitted import FittedDetector
    from normalis.loading.held_out import samples_to_score
    from normalis.output.folder import ScoreOptions, score_to_folder

    if not 0 < fpr < 1:
        raise typer.BadParameter(f"--fpr must be in (0, 1), got {fpr}")
    detector = FittedDetector.load(run, device=device, trust=trust, backbone=backbone)
    detector = _read_by(detector, scorer, reduction, scorer_option, normals, patient_pattern)
    dataset = open_data(
        images, patient_pattern, normal_class=normal_class, ignore_tables=ignore_tables
    )
    dataset, _ = select(dataset, detector.image_settings.where)
    describe(dataset, labels=False)
    cluster = Cluster(address=address, cpus_per_job=cpus_per_job, gpus_per_job=gpus_per_job)
    with progress("score") as bar:
        summary = score_to_folder(
            detector,
            samples_to_score(dataset),
            out,
            root=dataset.root if dataset.root.is_dir() else dataset.root.parent,
            options=ScoreOptions(
                maps=maps,
                overlays=overlays,
                all_overlays=all_overlays,
                fpr=fpr,
                fdr=fdr,
                engine=engine,
                overwrite=overwrite,
                relative_paths=relative_paths,
                pseudonyms=pseudonyms,
                similar=similar,
                cluster=cluster,
            ),
            progress=bar.update,
            aside=dataset.aside,
            drawn=lambda done, of: bar.update(done, of, "pictures"),
        )
    _summarise(summary, detector, fpr)
    _say_what_lies_where(out, summary, aside=len(dataset.aside), overlays=overlays, maps=maps)


def _say_what_lies_where(
    out: Path, summary: ScoreSummary, *, aside: int, overlays: bool, maps: bool
) -> None:
    if aside:
        console.print(f"{aside} left aside: {out / 'aside.csv'}", soft_wrap=True)
    console.print(f"table: {out / 'scores.csv'}", soft_wrap=True)
    console.print(_patients_said(summary.patients, out / "patients.csv"), soft_wrap=True)
    if overlays:
        console.print(f"pictures: {out / 'overlays'}", soft_wrap=True)
    if maps:
        console.print(f"maps: {out / 'maps'}", soft_wrap=True)
    console.print(f"next: normalis report {out} --out {out / 'report.html'}", soft_wrap=True)
    console.print("for triage and research, not for diagnosis")


def _read_by(
    detector: FittedDetector,
    scorer: str | None,
    reduction: str | None,
    option: list[str] | None,
    normals: Path | None,
    patient_pattern: str | None,
) -> FittedDetector:
    if scorer is None:
        if reduction or option or normals:
            raise typer.BadParameter("--reduction, --scorer-option and --normals need --scorer")
        return detector
    if normals is None:
        raise typer.BadParameter("--scorer needs --normals, the data that RUN was fitted on")
    chosen = open_data(normals, patient_pattern)
    return detector.with_scorer(
        scorer, chosen, reduction=reduction, scorer_options=options_of(option)
    )


def _patients_said(rows: Sequence[Sequence[Any]], file: Path) -> str:
    """Say how many patients there are and how many are flagged as a whole."""
    flags = [row[8] for row in rows]
    said = f"patients: {file}"
    if rows and all(flag != "" for flag in flags):
        said += f", {sum(flags)} of {len(rows)} flagged"
    odd = sum(bool(row[10]) for row in rows)
    return said + (f"; {odd} with an unusual number of images" if odd else "")


def _summarise(summary: ScoreSummary, detector: FittedDetector, fpr: float) -> None:
    console.print(_most_anomalous(summary.top))
    console.print(f"{counted(summary.images, 'image')} scored, {summary.skipped} skipped")
    for reason in summary.drift:
        errors.styled(f"[yellow]drift:[/] {escape(reason)}")
    if summary.flagged is not None:
        console.print(f"{summary.flagged} flagged at a false-positive rate of {fpr:g}")
    elif detector.calibration is None:
        console.print("no p-values: the run was fitted with --calibration none")
    else:
        least = detector.calibration.smallest_rate
        console.print(
            f"none flagged: the normals held out certify rates from {least:.2g}, not {fpr:g}"
        )


def _most_anomalous(top: list[dict[str, Any]]) -> Table:
    """Tabulate rows of scores; paths below the folder that they share, columns that say something.

    A path that is no file's own, such as a row of an array, stays as it is.
    """
    folders = {str(Path(row["path"]).parent) for row in top}
    shared = os.path.commonpath(folders) if folders and all(map(os.path.isabs, folders)) else ""
    named = {"image": "path", "slice": "slice", "score": "anomaly_score", "p-value": "p_value"}
    kept = {c: k for c, k in named.items() if any(row[k] not in (None, "") for row in top)}
    rows = [[row[key] for key in kept.values()] for row in top]
    if shared:
        rows = [[os.path.relpath(path, shared), *others] for path, *others in rows]
    rows = [[shortened(str(path)), *others] for path, *others in rows]
    return table("Most anomalous" + f", below {shared}" * bool(shared), list(kept), rows)
