"""``normalis demo``: the main job on generated images."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from normalis.cli.console import console
from normalis.cli.evaluate import evaluate
from normalis.cli.fit import fit
from normalis.cli.report import report
from normalis.cli.score import score

__all__ = ["demo"]


#: Enough to calibrate a rate of 5 %, and few enough for a minute.
_IMAGES = {"train": 360, "normal": 60, "anomalous": 60}


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = Path("demo"),
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the generated images and the training.")] = 0,
) -> None:
    """Do the main job on generated head slices: fit, score, evaluate, report."""
    from normalis.datasets.phantom import write_demo

    data, run, scored = out / "data", out / "run", out / "scored"
    console.print(f"about a minute on two idle cores; everything goes into {out}", soft_wrap=True)
    if not data.exists():
        write_demo(data, seed=seed, **_IMAGES)
    console.rule("1. normalis fit: learn normal images")
    context = {"epochs": epochs, "seed": seed}
    if not (run / "model.json").exists():
        fit(data, run, **{**_defaults(fit), **context})
    console.rule("2. normalis score: rank new images")
    if not (scored / "scores.csv").exists():
        score(run, data, scored, **_defaults(score))
    console.rule("3. normalis evaluate: with the labels of the generated images")
    evaluate(run, data, **_defaults(evaluate) | {"out": scored / "evaluation.json"})
    console.rule("4. normalis report: a page to look through")
    report(scored, out / "report.html", **_defaults(report))
    console.rule("where to look")
    console.print(
        f"  {out / 'report.html'}   open it in a browser\n"
        f"  {scored / 'overlays'}   a picture per image\n"
        f"  {scored / 'scores.csv'}   one row per image\n"
        f"  {run / 'model.json'}   what was fitted",
        soft_wrap=True,
    )


def _defaults(command: Callable[..., None]) -> dict[str, Any]:
    """Return the default of every option of a command, to call it from another."""
    parameters = inspect.signature(command).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}
