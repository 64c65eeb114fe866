"""A fitted detector as a cell of a notebook shows it."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np

from normalis.errors import SettingsError

if TYPE_CHECKING:
    from normalis.fitted import FittedDetector

__all__ = ["as_html"]

_WIDE, _HIGH, _MOST = 320, 34, 400


def as_html(fitted: FittedDetector) -> str:
    """Return a small table and a strip of the held-out scores."""
    calibration, params = fitted.calibration, fitted.params
    data = fitted.info.get("data", {})
    rows = {
        "method": f"{params['method']}, scorer {params['scorer']}",
        "images": f"{params['image_size']} × {params['image_size']}, {params['channels']} channel"
        + "s" * (params["channels"] != 1),
        "fitted on": f"{data.get('train_images', '?')} normal images of {data.get('name', '?')}",
        "calibration": "none: no p-values" if calibration is None else calibration.certifies(),
    }
    body = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th>'
        f'<td style="text-align:left">{escape(str(value))}</td></tr>'
        for name, value in rows.items()
    )
    return (
        f"<div><b>normalis detector</b><table>{body}</table>{_strip(fitted)}"
        "<div><small>For triage and research, not for diagnosis.</small></div></div>"
    )


def _strip(fitted: FittedDetector) -> str:
    """Return the scores of the normal images as ticks, and the threshold, as SVG."""
    scores = np.sort(fitted.normal_scores[np.isfinite(fitted.normal_scores)])
    if not scores.size:
        return ""
    shown = scores[np.linspace(0, scores.size - 1, min(scores.size, _MOST)).astype(int)]
    cut = _threshold(fitted)
    low, high = float(scores[0]), max(float(scores[-1]), cut if cut is not None else -np.inf)

    def along(value: float) -> float:
        return 6 + (_WIDE - 12) * (value - low) / ((high - low) or 1)

    ticks = "".join(f"M{along(v):.1f} 4V22" for v in shown)
    line = ""
    if cut is not None:
        line = f'<path d="M{along(cut):.1f} 0V26" stroke="#d55e00" stroke-width="2"/>'
    kind = "held-out" if fitted.calibration is not None else "training"
    said = f"scores of {scores.size} {kind} normal images, {low:.4g} to {float(scores[-1]):.4g}"
    said += f"; flagged above {cut:.4g}" if cut is not None else ""
    return (
        f'<svg width="{_WIDE}" height="{_HIGH - 6}" role="img" aria-label="{escape(said)}">'
        f'<path d="{ticks}" stroke="#0072b2" stroke-opacity=".5"/>{line}</svg>'
        f"<div><small>{escape(said)}</small></div>"
    )


def _threshold(fitted: FittedDetector) -> float | None:
    if fitted.calibration is None:
        return None
    try:
        return fitted.threshold(fitted.params["fpr"])
    except SettingsError:  # too few images to certify the rate, or no threshold that serves all
        return None
