"""Draw the tables of docs/panel.md that come from docs/data.

python docs/make_panel.py

`benchmarks/README.md` says which benchmark writes which table.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from make_results import SETS, Row, markdown, page, read

HERE = Path(__file__).parent


def _of(rows: Sequence[Row], **given: str) -> list[Row]:
    return [row for row in rows if all(row[k] == v for k, v in given.items())]


def scales() -> str:
    """Return AUROCs by what readings are measured by, seeds 0 / 1."""
    rows = read("panel_scales")
    sets = list(dict.fromkeys(row["data"] for row in rows))
    lines = []
    for way in dict.fromkeys(row["measured_by"] for row in rows):
        mine = _of(rows, measured_by=way)
        cells = [" / ".join(f"{float(r['auroc']):.1f}" for r in _of(mine, data=d)) for d in sets]
        drawn = [
            " / ".join(
                f"{float(r['mean']):.1f} ± {float(r['deviation']):.1f}" for r in _of(mine, data=d)
            )
            for d in ("lgg_flair",)
        ]
        whole = sum(float(r["mean"]) for r in mine) / len(mine)
        lines.append([way, *cells, *drawn, f"{whole:.2f}"])
    return markdown(
        ("measured by", *sets, "lgg_flair, 100 draws", "all sets, mean of 100 draws"), lines
    )


def border() -> str:
    """Return where the highest place lies, step by step."""
    rows = read("panel_border")
    return markdown(
        ("map", "data", "seed", "normal, %", "anomalous, %", "AUROC of its highest 2 %"),
        [[r["map"], r["data"], r["seed"], r["normal"], r["anomalous"], r["auroc"]] for r in rows],
    )


def trivial() -> str:
    """Return the panel beside the best score without a model, paired."""
    rows = read("methods_baselines")
    lines = []
    keys = dict.fromkeys((r["data"], r["seed"]) for r in rows)
    for data, seed in sorted(keys, key=lambda key: (SETS.index(key[0]), key[1])):
        best = max(_of(rows, data=data, seed=seed), key=lambda r: float(r["auroc"]))
        (whole,) = _of(read("methods"), data=data, seed=seed, method="panel")
        lines.append(
            [
                data, seed, f"{float(whole['auroc']):.1f}", best["baseline"].replace("_", " "),
                f"{float(best['auroc']):.1f}", f"{float(best['difference']):+.1f} "
                f"({float(best['diff_low']):+.1f} to {float(best['diff_high']):+.1f})", best["p"],
            ]
        )  # fmt: skip
    return markdown(
        ("data", "seed", "panel", "best without a model", "its AUROC", "difference", "p, Holm"),
        lines,
    )


def lesions() -> str:
    """Return shares of images and lesions by size, for the panel and its members with maps."""
    return markdown(
        ("data, figure", "method", *(f"from {low} px" for low, _ in _sizes()), "all from 30 px"),
        list(_lesion_rows()),
    )


def _sizes() -> list[tuple[str, str]]:
    found = dict.fromkeys((r["from_px"], r["to_px"]) for r in read("methods_lesions"))
    return sorted(found, key=lambda size: float(size[0]))


def _lesion_rows() -> Iterator[list[str]]:
    rows = read("methods_lesions")
    said = {"highest": "highest place in the lesion", "coloured": "lesions coloured"}
    for data, figure in dict.fromkeys((r["data"], r["figure"]) for r in rows):
        for method in ("panel", "ae-u", "spade"):
            cells = []
            for low, high in _sizes():
                mine = _of(rows, data=data, figure=figure, method=method, from_px=low, to_px=high)
                cells.append(
                    " / ".join(f"{float(r['value']):.0f} ({r['n']})" for r in mine if r["n"] != "0")
                )
            if any(cells):
                whole = _of(rows, data=data, figure=figure, method=method)
                yield [f"{data}, {said[figure]}", method, *cells, _from_30(whole)]


def _from_30(rows: Sequence[Row]) -> str:
    """Return the share of all that have 30 pixels and more, by seed."""
    found = []
    for seed in dict.fromkeys(row["seed"] for row in rows):
        large = [r for r in _of(rows, seed=seed) if int(r["from_px"]) >= 30 and r["n"] != "0"]
        count = sum(int(r["n"]) for r in large)
        found.append(f"{sum(float(r['value']) * int(r['n']) for r in large) / count:.0f}")
    return " / ".join(found)


PARTS: dict[str, Callable[[], str]] = {
    "scales": scales, "border": border, "trivial": trivial, "lesions": lesions,
}  # fmt: skip


def main() -> None:
    """Rewrite the page."""
    file = HERE / "panel.md"
    file.write_text(page(file.read_text(encoding="utf-8"), PARTS), encoding="utf-8")


if __name__ == "__main__":
    main()
