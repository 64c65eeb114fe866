"""Draw what the study of `selection_study` found: AUROC by latent dimension, and regret by rule."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt

__all__ = ["draw_curves", "draw_regret"]

COLOURS = {"its own error": "#c1502e", "median": "#1f6f8b"}
WORST = 3.0  # regret that a default may have, in AUROC points
Curves = Mapping[tuple[str, str], tuple[Sequence[float], np.ndarray]]


def draw_curves(curves: Curves, others: Mapping[str, float], path: Path) -> None:
    """Draw AUROC over d, a panel for each data set.

    Args:
        curves: (setting, reading) -> latent dimensions (C,), AUROC (S, C) in percent of S seeds;
            a setting is a data set, or "NAME, standardised".
        others: data set -> AUROC of the default method at d = 16, if it is there.
        path: of the picture.
    """
    names = sorted({name.split(",")[0] for name, _ in curves})
    figure, axes = plt.subplots(1, len(names), figsize=(9.6, 3.9), dpi=110, sharey=True)
    for axis, name in zip(np.atleast_1d(axes), names, strict=True):
        axis.axvline(16, color="0.85", lw=7, zorder=0)
        axis.axhline(50, color="0.5", lw=0.8, ls=":")
        for (setting, reading), (dims, auroc) in curves.items():
            if setting.split(",")[0] != name:
                continue
            plain, colour = setting == name, COLOURS[reading]
            label = f"AE, {reading}{'' if plain else ', standardised images'}"
            axis.plot(dims, auroc.mean(axis=0), "-" if plain else "--", color=colour, label=label)
            for seed in auroc:
                axis.plot(dims, seed, "o" if plain else "s", ms=2.5, color=colour, alpha=0.5)
        if name in others:
            axis.plot(16, others[name], "*", ms=13, color="#3b7d3a", label="AE-U, median (default)")
        axis.set(xscale="log", xlabel="latent dimension d", title=name, ylim=(20, 100))
        axis.set_xticks([1, 4, 16, 64], ["1", "4", "16", "64"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    first = np.atleast_1d(axes)[0]
    first.set_ylabel("AUROC, %")
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(path)
    plt.close(figure)


def draw_regret(regrets: Mapping[str, Mapping[str, Mapping[str, float]]], path: Path) -> None:
    """Draw the regret of each rule on each setting, a panel for each reading.

    Args:
        regrets: title of the panel -> rule -> setting -> regret in AUROC points.
        path: of the picture.
    """
    settings = sorted({s for by_rule in regrets.values() for r in by_rule.values() for s in r})
    names = dict.fromkeys(s.split(",")[0] for s in settings)
    shades = {name: plt.cm.tab10(i) for i, name in enumerate(names)}
    rules = next(iter(regrets.values()))
    order = sorted(rules, key=lambda r: -max(max(by[r].values()) for by in regrets.values()))
    figure, axes = plt.subplots(
        1, len(regrets), figsize=(9.6, 0.33 * len(order) + 1.2), dpi=110, sharey=True, sharex=True
    )
    for axis, (title, by_rule) in zip(np.atleast_1d(axes), regrets.items(), strict=True):
        axis.axvspan(-20, WORST, color="#3b7d3a", alpha=0.08, lw=0)
        axis.axvline(0, color="0.4", lw=0.8)
        for y, rule in enumerate(order):
            for setting, regret in by_rule[rule].items():
                plain = "," not in setting
                axis.plot(regret, y, "o" if plain else "s", color=shades[setting.split(",")[0]],
                          mfc=None if plain else "none", ms=6, label=setting)  # fmt: skip
            mean = np.mean([*by_rule[rule].values()])
            axis.plot([mean, mean], [y - 0.35, y + 0.35], "k-", lw=2, label="mean")
        axis.set(title=title, xlabel="regret, AUROC points", xlim=(-3, None))
        axis.set_yticks(range(len(order)), order)
        axis.grid(alpha=0.3, axis="x")
    handles, labels = np.atleast_1d(axes)[0].get_legend_handles_labels()
    shown = dict(zip(labels, handles, strict=True))
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    figure.legend(shown.values(), shown.keys(), loc="lower center", ncols=4, frameon=False,
                  fontsize=8)  # fmt: skip
    figure.savefig(path)
    plt.close(figure)
