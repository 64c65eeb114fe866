"""Apply a rule, and say how firmly the held-out images support its choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from normalis.errors import DataError, SettingsError, did_you_mean
from normalis.research.selection.evidence import Evidence
from normalis.research.selection.outcome import Selection
from normalis.research.selection.rules import READS_SCORES, RULES

__all__ = ["select_capacity"]


def select_capacity(
    evidence: Evidence, rule: str = "minimax-regret", *, repeats: int = 50, seed: int = 0
) -> Selection:
    """Choose among candidates by a rule of `RULES`.

    Args:
        evidence: of normal images and synthetic families, and nothing else.
        rule: name.
        repeats: bootstrap draws of held-out groups for ``stability``; 0 leaves it out. Only rules
            that read scores have one.
        seed: of the draws.

    Raises:
        SettingsError: if there is no such rule, or the evidence lacks what it needs.
    """
    if rule not in RULES:
        hint = did_you_mean(rule, RULES, cutoff=0.3)
        raise SettingsError(f"rule must be one of {', '.join(RULES)}, got {rule!r}{hint}")
    chosen = RULES[rule](evidence)
    if not repeats or rule not in READS_SCORES:
        return chosen
    stability = _stability(evidence, RULES[rule], repeats, seed)
    share = stability.get(str(chosen.choice), 0.0)
    reason = f"chosen in {share:.0%} of {repeats} resampled sets of held-out normal images"
    return replace(chosen, stability=stability, reasons=(*chosen.reasons, reason))


def _stability(
    evidence: Evidence, rule: Callable[[Evidence], Selection], repeats: int, seed: int
) -> dict[str, float]:
    if evidence.validation_scores is None:
        raise SettingsError("stability needs validation_scores; see Evidence")
    n = evidence.validation_scores.shape[1]
    labels = np.arange(n) if evidence.groups is None else np.asarray(evidence.groups)
    if labels.shape != (n,):
        raise DataError(f"groups must be ({n},), got {labels.shape}")
    members = [np.flatnonzero(labels == g) for g in np.unique(labels)]
    rng = np.random.default_rng(seed)
    counts = dict.fromkeys(evidence.candidates, 0)
    for _ in range(repeats):
        rows = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        counts[str(rule(evidence.images(rows)).choice)] += 1
    return {name: count / repeats for name, count in counts.items()}
