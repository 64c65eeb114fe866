"""Labels that come with training images: all must say normal."""

from __future__ import annotations

from typing import Any

import numpy as np

from normalis.errors import DataError

__all__ = ["check_all_normal"]


def check_all_normal(y: Any) -> None:
    """Refuse labels other than 0, False and "normal".

    scikit-learn's tools, such as ``cross_val_score``, hand labels to ``fit`` along with the images.
    To ignore them would be to train on anomalous images in silence.

    Args:
        y: (N,) labels, or None.

    Raises:
        DataError: if one says otherwise.

    Example:
        >>> check_all_normal([0, False, "normal"])
    """
    if y is None:
        return
    for i, label in enumerate(np.asarray(y, dtype=object).ravel()):
        if not _is_normal(label):
            raise DataError(
                f"fit learns from normal images alone: every label must be 0, False or 'normal', "
                f"label {i} is {label!r}. Leave the other images out, x[y == 0], and leave y out"
            )


def _is_normal(label: Any) -> bool:
    if isinstance(label, str):
        return label.strip().lower() == "normal"
    try:
        return bool(label == 0)  # 0.0, False and NumPy's among them
    except (TypeError, ValueError):
        return False
