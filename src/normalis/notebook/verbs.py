"""Verbs for people at a notebook, of a detector and of what was fitted: tables, figures, PyOD's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from normalis.errors import SettingsError
from normalis.errors.extras import require
from normalis.loading.held_out import Images

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from normalis.fitted import FittedDetector

__all__ = ["Verbs"]


class Verbs:
    """What both `normalis.AnomalyDetector` and `normalis.FittedDetector` can do with images."""

    if TYPE_CHECKING:

        def _fitted(self) -> FittedDetector:
            """Return what was fitted."""

    # --- tables and figures ---

    def scores_frame(self, x: Images) -> pandas.DataFrame:
        """Return one row an image, in the order of the images.

        Args:
            x: images.

        Returns:
            ``path``, ``slice``, ``patient_id``, ``anomaly_score``, ``p_value`` and ``flagged`` at
            the rate of the fit. The last two are missing values without calibration, ``flagged``
            also if too few images were held out to certify the rate.

        Raises:
            MissingExtraError: if pandas is not installed.
        """
        from normalis.scoring import joined_scores

        frames = require("pandas", extra="notebook", why="scores_frame")
        fitted = self._fitted()
        parts = fitted.scored(x, maps=False)
        rows = [row for part in parts for row in part.rows]
        scores = np.concatenate([part.anomaly_score for part in parts])
        p_value: NDArray[np.float64] = np.full(len(rows), np.nan)
        flagged = frames.array([frames.NA] * len(rows), dtype="boolean")
        if fitted.calibration is not None:
            groups = fitted.groups_of(parts)
            p_value = fitted.p_values_of(joined_scores(parts), groups)
            flags = fitted.flags_of(p_value, groups, fitted.params["fpr"])
            flagged = flagged if flags is None else frames.array(flags, dtype="boolean")
        return frames.DataFrame(
            {
                "path": [str(row.path) for row in rows],
                "slice": frames.array([row.slice_index for row in rows], dtype="Int64"),
                "patient_id": [row.patient_id for row in rows],
                "anomaly_score": scores,
                "p_value": p_value,
                "flagged": flagged,
            }
        )

    def plot_scores(
        self, x: Images | None = None, labels: Sequence[Any] | NDArray[Any] | None = None
    ) -> Figure:
        """Return a figure of the normal scores that were held out, and of new ones.

        Args:
            x: new images; None for the held-out ones alone.
            labels: (N,) whether each new image is anomalous.
        """
        from normalis.notebook.figures import draw_scores

        fitted = self._fitted()
        return draw_scores(fitted, None if x is None else fitted.anomaly_score(x), labels)

    def plot_case(self, x: Images, index: int = 0) -> Figure:
        """Return a figure of one image with its reconstruction and its map on two scales.

        Args:
            x: images.
            index: which of them.
        """
        from normalis.notebook.figures import draw_case

        return draw_case(self._fitted(), x, index)

    def plot_calibration(self) -> Figure:
        """Return a figure of the share of new normal images that each threshold flags at most.

        Raises:
            NotFittedError: without calibration.
            SettingsError: as of `normalis.FittedDetector.threshold`.
        """
        from normalis.notebook.figures import draw_calibration

        return draw_calibration(self._fitted().require_one_calibration())

    def reconstruct(self, x: Images) -> NDArray[np.float32]:
        """Return what the model makes of images: (N, C, S, S), normal pixels within [0, 1].

        Raises:
            SettingsError: if the method has no reconstructions.
            DataError: if an image cannot be read.
        """
        from normalis.loading.arrays import to_unit
        from normalis.notebook.images import images_of
        from normalis.scoring import batches_of, from_model_range

        fitted = self._fitted()
        loaded = images_of(fitted, x)
        found = []
        for part in fitted.score(
            batches_of(loaded, fitted=fitted), maps=False, reconstructions=True
        ):
            if part.reconstruction is None:
                raise SettingsError(
                    f"the method {fitted.params['method']} has no reconstructions; autoencoders, "
                    "such as ae-u, and pca have"
                )
            found.append(part.reconstruction)
        again = np.concatenate(found)
        return from_model_range(again, to_unit(loaded.pixels), standardize=fitted.standardize)

    # --- PyOD's vocabulary ---

    @property
    def labels_(self) -> NDArray[np.int64]:
        """1 for each of ``decision_scores_`` above the threshold, 0 for others.

        PyOD's are of the training images. Here they are of the normal images held out, of which
        about ``fpr`` are above by construction.

        Raises:
            SettingsError: as of `normalis.FittedDetector.threshold`.
        """
        fitted = self._fitted()
        threshold = fitted.threshold(fitted.params["fpr"])
        return (fitted.normal_scores > threshold).astype(np.int64)

    def predict_proba(self, x: Images) -> NDArray[np.float64]:
        """Return (N, 2): the p-value, and one minus it.

        PyOD rescales scores and calls the second the probability of an outlier. No method can know
        that from normal images alone. What is known: the first column is the share of normal
        images that score at least as high.

        Raises:
            NotFittedError: without calibration.
        """
        p_value = self._fitted().p_value(x)
        return np.stack([p_value, 1 - p_value], axis=1)

    def predict_confidence(self, x: Images) -> NDArray[np.float64]:
        """Return (N,): how sure it is that other held-out images would lead to the same label.

        Perini, Vercruyssen & Davis, Quantifying the confidence of anomaly detectors in their
        example-wise predictions (ECML-PKDD 2020), with the held-out normal images in place of the
        training images, and ``fpr`` in place of the contamination.

        Raises:
            NotFittedError: without calibration.
            SettingsError: if too few normal images were held out to certify the rate, or if the
                calibration is one of groups.
        """
        from scipy.stats import binom

        fitted = self._fitted()
        held, rate = np.sort(fitted.require_one_calibration().scores), fitted.params["fpr"]
        flagged = fitted.predict(x).astype(bool)
        below = np.searchsorted(held, fitted.anomaly_score(x), side="right")
        share = (1 + below) / (2 + held.size)
        above = 1 - binom.cdf(held.size - int(held.size * rate), held.size, share)
        found: NDArray[np.float64] = np.where(flagged, above, 1 - above)
        return found

    # --- shown in a notebook ---

    def _repr_html_(self) -> str:
        from normalis.notebook.html import as_html

        return as_html(self._fitted())
