"""The figure of a fingerprint: rate against distortion, the spectrum, lesions against rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from normalis.entropy.fingerprint import Fingerprint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_fingerprint"]


def draw_fingerprint(found: Fingerprint) -> Figure:
    """Draw what `fingerprint` found, three panels side by side; the caller saves the figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), dpi=100, layout="constrained")
    rate, spectrum, lesions = figure.subplots(1, 3)
    _draw_rate(rate, found)
    _draw_spectrum(spectrum, found)
    _draw_lesions(lesions, found)
    for axes in (rate, spectrum, lesions):
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontsize(10)
    return figure


def _draw_rate(axes: Axes, found: Fingerprint) -> None:
    levels = 255 * np.sqrt(found.distortions)
    own = np.array([(e.value, e.low, e.high) for e in found.rate])
    axes.fill_between(levels, own[:, 1], own[:, 2], alpha=0.25, color="C0", linewidth=0)
    axes.plot(levels, own[:, 0], color="C0", marker=".", label="own spectrum (biased low)")
    axes.plot(levels, found.rate_heldout, color="C1", marker=".", label="held-out half")
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0)
    axes.set_title("Rate R(D), Gaussian upper bound")
    axes.set_xlabel("allowed error, r.m.s. grey levels of 256")
    axes.set_ylabel("nats per image")
    axes.legend(frameon=False, fontsize=8)


def _draw_spectrum(axes: Axes, found: Fingerprint) -> None:
    values = np.array([v for v in found.eigenvalues if v > 0])
    axes.loglog(np.arange(1, len(values) + 1), values, color="C0")
    for share in ("50%", "90%"):
        count = found.components[share]
        axes.axvline(count, color="0.6", linewidth=0.8, linestyle=":")
        axes.annotate(
            f"{share}: {count}", (count, 0.02), xycoords=("data", "axes fraction"), fontsize=8,
            rotation=90, ha="right", va="bottom",
        )  # fmt: skip
    axes.set_title("Variance by principal direction")
    axes.set_xlabel("direction")
    axes.set_ylabel("eigenvalue")


def _draw_lesions(axes: Axes, found: Fingerprint) -> None:
    scales = [row["scale_px"] for row in found.lesion_ranks]
    ranks = [row["best_rank"] for row in found.lesion_ranks]
    axes.plot(scales, ranks, color="C2", marker="o", clip_on=False)
    axes.set_xscale("log", base=2)
    axes.set_xticks(scales, [f"{s:g}" for s in scales])
    axes.set_yscale("symlog", linthresh=1)
    if scales:
        most = found.lesion_ranks[0]["most_tried"]
        axes.set_ylim(0, 2 * most)
        axes.axhline(most, color="0.6", linewidth=0.8, linestyle=":")
        axes.annotate(
            f"most tried: {most:.0f}", (0.02, most), xycoords=("axes fraction", "data"),
            fontsize=8, va="bottom", xytext=(0, 4), textcoords="offset points",
        )  # fmt: skip
    axes.set_title("Best rank for a blob, closed form")
    axes.set_xlabel("diameter of the blob, pixels")
    axes.set_ylabel("principal directions removed")
    if not scales:
        axes.text(0.5, 0.5, "too few or non-square images", ha="center", transform=axes.transAxes)
