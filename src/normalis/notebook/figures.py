"""Figures of scores, of one case and of the calibration: made by matplotlib, returned.

They hang on no global state of pyplot. A notebook shows the one that a cell ends with;
``figure.savefig("scores.png")`` writes it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from normalis.datasets.levels import NAMES, plural
from normalis.errors import DataError, SettingsError
from normalis.errors.arguments import check_kind
from normalis.errors.words import counted

if TYPE_CHECKING:
    from normalis.calibration.conformal import Calibration
    from normalis.fitted import FittedDetector

__all__ = ["Shown", "draw_calibration", "draw_case", "draw_scores"]

_NORMAL, _NEW, _ANOMALOUS = "#0072b2", "#6b7280", "#d55e00"
#: A map (S, S), and what is least and most of its colours.
_Over = tuple[NDArray[np.float32], float, float]
_RATES = (0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.001)


class Shown(Figure):
    """A figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


def draw_scores(
    fitted: FittedDetector,
    scores: NDArray[np.float64] | None,
    labels: Sequence[Any] | NDArray[Any] | None,
) -> Shown:
    """Draw histograms of the held-out normal scores and of new ones, with the threshold.

    Args:
        fitted: a detector.
        scores: (N,) of new images, None for none.
        labels: (N,) whether each new image is anomalous, None if that is not known.
    """
    held = fitted.normal_scores
    groups = [("normal, held out" if fitted.calibration else "normal, of training", held, _NORMAL)]
    if scores is not None:
        groups += _new_scores(scores, labels)
    every = np.concatenate([values for _, values, _ in groups])
    if not every.size:
        raise DataError("there is no score to draw: the run keeps none and no image was given")
    figure = Shown(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    edges = np.histogram_bin_edges(every, bins=40).tolist()
    for name, values, colour in groups:
        label = f"{name} (n = {values.size})"
        axes.hist(values, edges, density=True, alpha=0.55, color=colour, label=label)
    _draw_threshold(axes, fitted)
    axes.set(xlabel="anomaly score", ylabel="density")
    axes.legend(frameon=False)
    return figure


def _new_scores(
    scores: NDArray[np.float64], labels: Sequence[Any] | NDArray[Any] | None
) -> list[tuple[str, NDArray[np.float64], str]]:
    if labels is None:
        return [("new", scores, _NEW)]
    known = np.asarray(labels).astype(bool)
    if known.shape != scores.shape:
        raise DataError(
            f"labels must be one per image, ({scores.size},), have the shape {known.shape}"
        )
    return [("new, normal", scores[~known], _NEW), ("new, anomalous", scores[known], _ANOMALOUS)]


def _draw_threshold(axes: Any, fitted: FittedDetector) -> None:
    if fitted.calibration is None:
        return
    rate = fitted.params["fpr"]
    try:
        at = fitted.threshold(rate)
    except SettingsError:  # too few images to certify the rate, or no threshold that serves all
        return
    axes.axvline(at, color="black", linestyle="--", label=f"threshold at {rate:.0%}")


def draw_case(fitted: FittedDetector, x: Any, index: int) -> Shown:
    """Draw one image, its reconstruction where there is one, and its map on two scales.

    Args:
        fitted: a detector.
        x: images.
        index: which of them.
    """
    from normalis.notebook.images import images_of, only
    from normalis.scoring import batches_of, from_model_range

    check_kind("index", index, "whole")
    loaded = images_of(fitted, x)
    if not -len(loaded.rows) <= index < len(loaded.rows):
        raise DataError(f"index must be below {len(loaded.rows)}, the number of images: {index}")
    one = only(loaded, index % len(loaded.rows))
    (part,) = fitted.score(batches_of(one), reconstructions=True)
    unit = _unit(one.pixels)
    panels: list[tuple[str, NDArray[np.float32], _Over | None]] = [("image", unit[0], None)]
    if part.reconstruction is not None:
        again = from_model_range(part.reconstruction, unit, standardize=fitted.standardize)
        panels.append(("reconstruction", again[0], None))
    if part.anomaly_map is not None:
        level = fitted.calibrated(part.anomaly_map)[0]
        scale = fitted.colour_scale
        panels.append(("above normal images", unit[0], (level, scale.quiet, scale.full)))
        panels.append(("its own scale", unit[0], (level, float(level.min()), float(level.max()))))
    figure = Shown(figsize=(2.6 * len(panels), 3.0), layout="constrained")
    figure.suptitle(_title(fitted, part), fontsize=10)
    for axes, (name, picture, over) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels,
                                           strict=True):  # fmt: skip
        _show(axes, name, picture, over)
    return figure


def _unit(pixels: NDArray[Any]) -> NDArray[np.float32]:
    from normalis.loading.arrays import to_unit

    return to_unit(pixels)


def _title(fitted: FittedDetector, part: Any) -> str:
    from normalis.scoring import joined_scores

    text = f"score {part.anomaly_score[0]:.4g}"
    if fitted.calibration is None:
        return text
    p_value = fitted.p_values_of(joined_scores([part]), fitted.groups_of([part]))[0]
    return f"{text}, p = {p_value:.3g}"


def _show(
    axes: Any,
    name: str,
    picture: NDArray[np.float32],
    over: _Over | None,
) -> None:
    """Show an image (C, S, S), and a map over it."""
    shown = np.clip(picture, 0, 1).transpose(1, 2, 0)
    axes.imshow(shown if shown.shape[2] == 3 else shown[..., 0], cmap="gray", vmin=0, vmax=1)
    if over is not None:
        level, least, most = over
        painted = np.ma.masked_less_equal(level, least)
        axes.imshow(painted, cmap="inferno", alpha=0.6, vmin=least, vmax=max(most, least + 1e-12))
        if least > float(level.min()):  # the first colours are dark: a line shows where they begin
            axes.contour(level, [least], colors=_ANOMALOUS, linewidths=1.2)
    axes.set_title(name, fontsize=9)
    axes.axis("off")


def draw_calibration(calibration: Calibration) -> Shown:
    """Draw which share of new normal images each threshold flags at most.

    Raises:
        SettingsError: with ``cv+``, whose models have no common scale.
    """
    rates = np.unique(np.geomspace(calibration.smallest_rate, 1.0, 200))
    usable = [float(rate) for rate in rates if rate < 1]
    thresholds = [calibration.threshold(rate) for rate in usable]
    figure = Shown(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.step(thresholds, usable, where="post", color=_NORMAL)
    for rate in _RATES:
        if rate >= calibration.smallest_rate:
            axes.plot(calibration.threshold(rate), rate, "o", color=_NORMAL, markersize=4)
            axes.annotate(f"{100 * rate:g} %", (calibration.threshold(rate), rate), fontsize=8,
                          xytext=(5, 3), textcoords="offset points")  # fmt: skip
    axes.set(yscale="log", xlabel="flag images above this score",
             ylabel=f"of new normal {NAMES[calibration.level][1]} at most")  # fmt: skip
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    held = counted(calibration.n_images, "held-out normal image")
    if calibration.level != "image":
        held += f" of {plural(calibration.n_units, calibration.level)}"
    least = 100 * calibration.smallest_rate
    axes.set_title(f"{held}: rates below {least:.2g} % cannot be certified", fontsize=9)
    return figure
