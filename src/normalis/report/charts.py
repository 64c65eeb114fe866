"""Charts as SVG text to be put into a page: drawn by matplotlib, coloured by the page's CSS.

Each chart names colours by the constants below; in the SVG they become CSS variables, so that a
chart follows the page into dark mode and into print. Classes differ by line style and hatching as
well as by colour (blue and vermilion of Okabe and Ito's palette, told apart by all readers).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normalis.report.curves import Curve

__all__ = [
    "calibration_chart",
    "histogram",
    "largest_shown",
    "latent_dims",
    "precision_recall_chart",
    "roc_chart",
    "training_curve",
]

_INK, _MUTED, _GRID, _PAPER = "#010203", "#040506", "#070809", "#0a0b0c"
_NORMAL, _ANOMALOUS = "#0072b2", "#d55e00"
_SERIES = (_NORMAL, _ANOMALOUS, "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_VARIABLES = {
    _INK: "--ink",
    _MUTED: "--muted",
    _GRID: "--grid",
    _PAPER: "--card",
    _NORMAL: "--normal",
    _ANOMALOUS: "--anomalous",
    "#009e73": "--series-3",
    "#cc79a7": "--series-4",
    "#e69f00": "--series-5",
    "#56b4e9": "--series-6",
}
_STYLES, _MARKERS = ("-", "--", "-.", ":"), "os^Dv<>P"
_WIDE, _SQUARE = (5.6, 2.5), (3.6, 2.9)  # inches; 9 point text
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: selectable, and in the reader's own font
    "text.parse_math": False,  # a data set's name may hold a dollar sign
    "font.size": 9,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "text.color": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def _plain(value: float, _position: int | None = None) -> str:
    return f"{value:g}"


def _svg(name: str, draw: Callable[[Any], None], size: tuple[float, float]) -> str:
    """Draw on a figure of its own, without pyplot's global state.

    Args:
        name: unique within a page; makes the ids inside the SVG so.
        draw: fills the axes.
        size: inches; the page scales it.
    """
    import matplotlib
    from matplotlib.figure import Figure

    settings: Any = {**_SETTINGS, "svg.hashsalt": name}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size, dpi=72, layout="constrained")  # as SVG measures
        axes = figure.add_subplot()
        draw(axes)
        figure.draw_without_rendering()  # ticks are settled only now, and decide the margins
        buffer = StringIO()
        none = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=none)
    return _inline(buffer.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """Cut the prologue, name CSS variables for colours, make ids unique within the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r'\1 aria-hidden="true" focusable="false"', svg, count=1
    )
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = re.sub(r'id="([\w.]+)"', rf'id="{name}-\1"', svg)
    return re.sub(r'(href="|url\()#([\w.]+)', rf"\1#{name}-\2", svg)


def training_curve(history: Sequence[Mapping[str, float]]) -> str:
    """Draw each loss by epoch; on a logarithmic axis where values span more than a decade."""
    names = sorted({name for epoch in history for name in epoch if name != "epoch"})

    def draw(axes: Any) -> None:
        from matplotlib.ticker import LogLocator, NullLocator

        drawn = []
        for i, name in enumerate(names):
            values = np.array([epoch.get(name, np.nan) for epoch in history], dtype=float)
            style = {"color": _SERIES[i % len(_SERIES)], "linestyle": _STYLES[i % len(_STYLES)]}
            marker = {"marker": "o", "markersize": 3} if len(history) < 12 else {}
            axes.plot(np.arange(1, len(history) + 1), values, label=name, **style, **marker)
            drawn.append(values[np.isfinite(values)])
        pooled = np.concatenate(drawn) if drawn else np.empty(0)
        if pooled.size and pooled.min() > 0 and pooled.max() > 10 * pooled.min():
            axes.set_yscale("log")
            steps = (1, 2, 5) if pooled.max() < 1000 * pooled.min() else (1,)
            axes.yaxis.set_major_locator(LogLocator(subs=steps))
            axes.yaxis.set_major_formatter(_plain)
            axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss")
        axes.xaxis.get_major_locator().set_params(integer=True)
        if len(names) > 1:
            axes.legend()

    return _svg("training", draw, _WIDE)


def histogram(groups: Mapping[str, NDArray[np.float64]], threshold: float | None) -> str:
    """Draw the scores of each group as a share of the group, with the threshold.

    Args:
        groups: title -> (n,) scores; at most three. A title with "anomalous" gets its colour.
        threshold: score above which an image is flagged, None for none.
    """
    filled = {name: values[np.isfinite(values)] for name, values in groups.items()}
    filled = {name: values for name, values in filled.items() if values.size}

    def draw(axes: Any) -> None:
        bins = _bins(np.concatenate(list(filled.values())))
        for i, (name, values) in enumerate(filled.items()):
            share = np.full(values.size, 100 / values.size)
            values = np.minimum(values, bins[-1])  # extreme scores are in the last bar
            colour, dashes = _class_style(name, i)
            if colour != _MUTED:
                axes.hist(
                    values, bins, weights=share, color=colour, alpha=0.22, histtype="stepfilled"
                )
            axes.hist(
                values, bins, weights=share, histtype="step", edgecolor=colour, linestyle=dashes,
                linewidth=1.5, label=name,
            )  # fmt: skip
        if threshold is not None:
            axes.axvline(
                threshold, color=_INK, linewidth=1.4, linestyle=(0, (5, 2)), label="threshold"
            )
        axes.set_xlabel("anomaly score")
        axes.set_ylabel("% of the group")
        axes.legend(loc="best", fontsize=8)
        axes.locator_params(axis="x", nbins=6)
        axes.locator_params(axis="y", nbins=5, integer=True)

    return _svg("histogram", draw, _WIDE)


def _class_style(name: str, i: int) -> tuple[str, str]:
    if "anomalous" in name:
        return _ANOMALOUS, "--"
    return (_NORMAL, "-") if i == 0 else (_MUTED, ":")


def _bins(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 40 bins up to `largest_shown`."""
    low, high = values.min(), largest_shown(values)
    return np.linspace(low, high, 41) if high > low else np.linspace(low - 0.5, low + 0.5, 41)


def largest_shown(values: NDArray[np.float64]) -> float:
    """Return where a histogram ends: a few extreme scores would flatten the rest."""
    low, most = float(values.min()), float(values.max())
    nearly_all = float(np.quantile(values, 0.995))
    return most if most - low < 1.4 * (nearly_all - low) else nearly_all


def roc_chart(curve: Curve, *, name: str = "roc") -> str:
    """Draw the ROC curve with its band and the line of chance."""

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=1, linestyle=":")
        _with_band(axes, curve)
        axes.set_xlabel("false-positive rate")
        axes.set_ylabel("sensitivity")
        _unit_square(axes)

    return _svg(name, draw, _SQUARE)


def precision_recall_chart(curve: Curve, prevalence: float) -> str:
    """Draw precision by recall with its band and the share of anomalous images."""

    def draw(axes: Any) -> None:
        axes.axhline(prevalence, color=_MUTED, linewidth=1, linestyle=":")
        _with_band(axes, curve)
        axes.set_xlabel("recall (sensitivity)")
        axes.set_ylabel("precision")
        _unit_square(axes)

    return _svg("pr", draw, _SQUARE)


def _with_band(axes: Any, curve: Curve) -> None:
    if curve.low.size:
        axes.fill_between(curve.grid, curve.low, curve.high, color=_NORMAL, alpha=0.18, linewidth=0)
    axes.plot(curve.x, curve.y, color=_NORMAL)


def _unit_square(axes: Any) -> None:
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), box_aspect=1)


def calibration_chart(p_values: NDArray[np.float64], band: Curve | None = None) -> str:
    """Draw which share of known normal images has a p-value at or below each level.

    Args:
        p_values: (n,) of images known to be normal.
        band: x, low and high of the range expected by chance; None for none.
    """
    levels = np.sort(p_values)
    share = np.arange(1, levels.size + 1) / levels.size

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=1, linestyle=":")
        if band is not None:
            axes.fill_between(band.grid, band.low, band.high, color=_MUTED, alpha=0.2, linewidth=0)
        axes.step(np.append(0, levels), np.append(0, share), where="post", color=_NORMAL)
        axes.set_xlabel("stated false-positive rate")
        axes.set_ylabel("share of normals flagged")
        _unit_square(axes)

    return _svg("calibration", draw, _SQUARE)


def latent_dims(
    lines: Mapping[str, Sequence[tuple[float, float, float, float]]], *, name: str, metric: str
) -> str:
    """Draw a metric by latent dimension, one line a method.

    Args:
        lines: title -> (latent_dim, value, low, high) by ascending latent dimension; a latent
            dimension of NaN is a method without one, drawn as a level line.
        name: unique within the page.
        metric: for the axis.
    """

    def draw(axes: Any) -> None:
        for i, (title, points) in enumerate(lines.items()):
            colour = _SERIES[i % len(_SERIES)]
            look: dict[str, Any] = {"color": colour, "linestyle": _STYLES[(i // 6) % 4]}
            d, value, low, high = np.array(points, dtype=float).T
            if np.isnan(d).all():
                axes.axhline(value[0], label=title, linewidth=1.2, color=colour, linestyle=":")
                continue
            axes.fill_between(d, low, high, color=colour, alpha=0.12, linewidth=0)
            axes.plot(d, value, label=title, marker=_MARKERS[i % 8], markersize=4, **look)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(_plain)
        axes.set_xlabel("latent dimension d")
        axes.set_ylabel(metric)
        axes.legend(fontsize=8, ncols=2 if len(lines) > 4 else 1)

    return _svg(name, draw, (5.2, 3.2))
