"""``normalis calibrate``: a fitted model with the p-values of another place."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normalis.cli.arguments import PatientPattern
from normalis.cli.console import console, errors, escape
from normalis.errors import CalibrationWarning

if TYPE_CHECKING:
    from normalis.fitted import FittedDetector

__all__ = ["calibrate", "say_calibration"]


def calibrate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `fit` wrote.")],
    normals: Annotated[
        Path, typer.Argument(metavar="NORMALS", help="Normal images that RUN was not trained on.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Run folder to write.")],
    patient_pattern: PatientPattern = None,
    by: Annotated[
        str | None,
        typer.Option(help="Column or header field that names groups, each with own p-values."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a finished run.")] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Import a method that RUN names, which runs its code.")
    ] = False,
) -> None:
    """Calibrate RUN on NORMALS without training: the same model, with your own p-values."""
    from normalis.datasets import open_dataset, patients_from_pattern
    from normalis.fitted import FittedDetector

    data = open_dataset(normals)
    if patient_pattern:
        data = patients_from_pattern(data, patient_pattern)
    fitted = FittedDetector.load(run, trust=trust)
    with errors.status("scoring normal images"), warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)  # said below
        here = fitted.calibrate(data, by=by)
    here.save(out, overwrite=overwrite)
    say_calibration(here)
    if here.grouped is not None:
        rate = here.params["fpr"]
        console.print(f"p <= {rate:g} {here.grouped.statement(rate)}", soft_wrap=True)
    console.print(f"run: {out}\nnext: normalis score {out} IMAGES --out OUT", soft_wrap=True)


def say_calibration(fitted: FittedDetector) -> None:
    """Say how many units calibrate, what that certifies, and what is weak about it."""
    said: dict[str, Any] = fitted.info["calibration"]
    calibration, rate = fitted.calibration, fitted.params["fpr"]
    if calibration is not None:
        why = f": {said['reason']}" if said["reason"] else ""
        console.print(f"{calibration.certifies()}{why}", soft_wrap=True)
        for text in calibration.of_unknown_patients():
            console.print(text, soft_wrap=True)
        if rate >= calibration.smallest_rate:
            console.print(f"p <= {rate:g} {calibration.statement(rate)}", soft_wrap=True)
    notes = [*said["notes"], *(calibration.advice(rate) if calibration else ())]
    for note in notes:
        console.print(f"note: {escape(note)}", soft_wrap=True)
