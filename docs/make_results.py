"""Draw the generated parts of docs/results.md and the figure anew from results/.

python docs/make_results.py
"""

import json
import re
from pathlib import Path
from typing import Any

from normalis.research.paired import versus
from normalis.research.reproduce import figure3
from normalis.research.tables import fill_in, write_figure

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
OWN = "^(?!.*(drop_train_twins|validation_share))"  # rows of the page; other studies have theirs


def single_runs(folder: Path) -> str:
    """Return a table of what `normalis evaluate --out` wrote into a folder."""
    head = ("run", "images", "figure", "value", "95 % interval")
    lines = [f"| {' | '.join(head)} |", "| --- | --- | --- | ---: | --- |"]
    for file in sorted(folder.glob("*.json")):
        body = json.loads(file.read_text(encoding="utf-8"))
        for subset in body["subsets"]:
            if subset["name"].startswith("only "):
                continue
            named = f"{subset['name']} ({subset['n_normal']} + {subset['n_anomalous']})"
            figures = subset["ranking"] | {
                f"{k} (oracle)": v for k, v in subset["oracle"].items() if k == "best_dice"
            }
            best = max(subset["baselines"], key=lambda b: b["auroc"]["value"], default=None)
            if best:
                figures[f"best trivial score, {best['name']}: auroc"] = best["auroc"]
            lines += [_line(file.stem, named, name, one) for name, one in figures.items()]
    return "\n".join(lines)


def _line(run: str, images: str, name: str, one: dict[str, Any]) -> str:
    interval = "" if one["low"] is None else f"{100 * one['low']:.1f} to {100 * one['high']:.1f}"
    return f"| {run} | {images} | {name} | {100 * one['value']:.1f} | {interval} |"


def fill_single_runs(text: str) -> str:
    """Return the page with the table of single runs between its markers."""
    table = f"<!-- runs -->\n\n{single_runs(RESULTS / 'evaluations')}\n\n<!-- end of runs -->"
    return re.sub(r"<!-- runs -->.*<!-- end of runs -->", lambda _: table, text, flags=re.DOTALL)


def comparisons(datasets: tuple[str, ...]) -> str:
    """Return the paired comparisons of each data set as tables."""
    lines: list[str] = []
    for dataset in datasets:
        reference, found = versus(RESULTS, dataset=dataset, rows=OWN)
        units = found[0].n_units if found else 0
        lines += [f"**{dataset}**, against {reference}, {units} patients or images", ""]
        lines += ["| method | seeds | AUROC | difference | 95 % | p, corrected | |"]
        lines += ["| --- | ---: | ---: | ---: | --- | ---: | --- |"]
        lines += [
            f"| {one.row} | {one.n_seeds} | {100 * one.value:.1f} | {100 * one.difference:+.1f} "
            f"| {100 * one.low:+.1f} to {100 * one.high:+.1f} | {one.adjusted_p:.1g} "
            f"| {one.verdict} |"
            for one in found
        ]
        lines.append("")
    return "\n".join(lines).rstrip()


def fill_comparisons(text: str) -> str:
    """Return the page with the comparisons between their markers."""
    tables = comparisons(("kermany_cxr", "lgg_flair", "brain_tumor"))
    table = f"<!-- versus -->\n\n{tables}\n\n<!-- end of versus -->"
    pattern = "<!-- versus -->.*<!-- end of versus -->"
    return re.sub(pattern, lambda _: table, text, flags=re.DOTALL)


def main() -> None:
    """Rewrite the page and the figure."""
    page = HERE / "results.md"
    text = fill_in(page.read_text(encoding="utf-8"), RESULTS)
    page.write_text(fill_comparisons(fill_single_runs(text)), encoding="utf-8")
    curves = [c for c in figure3(RESULTS) if max(c.latent_dims) >= 512]
    if curves:
        write_figure(curves, HERE / "images")


if __name__ == "__main__":
    main()
