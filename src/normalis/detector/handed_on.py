"""What a detector hands on of what was fitted: its parts with scikit-learn's names, its verbs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from normalis import scorers
from normalis.calibration.colours import ColourScale
from normalis.calibration.conformal import Calibration
from normalis.calibration.findings import Finding
from normalis.fitted import FittedDetector, fitted_of
from normalis.images import IntensityRule
from normalis.loading.held_out import Images
from normalis.loading.similar import SHOWN, SimilarNormals
from normalis.models.base import AnomalyModel
from normalis.notebook.verbs import Verbs

__all__ = ["HandedOn"]


class HandedOn(Verbs):
    """Parts and verbs of the `FittedDetector` that a fitted `AnomalyDetector` holds."""

    fpr: float

    # --- what was fitted ---

    def _fitted(self) -> FittedDetector:
        return fitted_of(self)

    @property
    def models_(self) -> tuple[AnomalyModel, ...]:
        """The fitted models, with ``cv+`` one per fold."""
        return self._fitted().models

    @property
    def model_(self) -> AnomalyModel:
        """The fitted model; with ``cv+`` the first of ``models_``."""
        return self._fitted().models[0]

    @property
    def scorers_(self) -> tuple[scorers.Scorer, ...]:
        """The fitted scorer of each model."""
        return self._fitted().scorers

    @property
    def scorer_(self) -> scorers.Scorer:
        """The fitted scorer; with ``cv+`` the first of ``scorers_``."""
        return self._fitted().scorers[0]

    @property
    def rule_(self) -> IntensityRule | None:
        """The intensity rule of deep images, None if all were 8-bit."""
        return self._fitted().rule

    @property
    def calibration_(self) -> Calibration | None:
        """Scores of held-out normal images, None with ``calibration="none"``."""
        return self._fitted().calibration

    @property
    def colour_scale_(self) -> ColourScale:
        """The one scale of all pictures."""
        return self._fitted().colour_scale

    @property
    def decision_scores_(self) -> NDArray[np.float64]:
        """Scores of the held-out (else of the training) normal images."""
        return self._fitted().normal_scores

    @property
    def history_(self) -> Sequence[Mapping[str, float]]:
        """Losses by epoch."""
        return self._fitted().history

    @property
    def latent_dim_(self) -> int:
        """Size of the bottleneck that was used."""
        return self._fitted().latent_dim

    @property
    def info_(self) -> Mapping[str, Any]:
        """Data, versions, durations; ``measured`` is what a method says of held-out images."""
        return self._fitted().info

    @property
    def skipped_(self) -> Sequence[tuple[Path, str]]:
        """(path, reason) of normal images that could not be read."""
        return self._fitted().skipped

    @property
    def device_(self) -> torch.device:
        """Where the models are."""
        return self._fitted().device

    @property
    def threshold_(self) -> float:
        """Score above which an image is flagged at the false-positive rate ``fpr``.

        Raises:
            SettingsError: as of `FittedDetector.threshold`.
        """
        return self._fitted().threshold(self.fpr)

    # --- score ---

    def anomaly_score(self, x: Images) -> NDArray[np.float64]:
        """Return one score per image (N,), higher is more anomalous."""
        return self._fitted().anomaly_score(x)

    def decision_function(self, x: Images) -> NDArray[np.float64]:
        """Return `anomaly_score`; PyOD's name and sign."""
        return self.anomaly_score(x)

    def anomaly_map(self, x: Images) -> NDArray[np.float32]:
        """Return one map per image (N, S, S), higher is more anomalous."""
        return self._fitted().anomaly_map(x)

    def similar_normals(self, x: Images, k: int = SHOWN) -> SimilarNormals:
        """Return the normal images that each image resembles most, with their pictures.

        See `FittedDetector.similar_normals`.
        """
        return self._fitted().similar_normals(x, k)

    def calibrated_map(self, x: Images) -> NDArray[np.float32]:
        """Return one calibrated map per image (N, S, S); see `FittedDetector.calibrated_map`."""
        return self._fitted().calibrated_map(x)

    def findings(self, x: Images) -> list[list[Finding]]:
        """Return each image's areas above normal ones; see `FittedDetector.findings`."""
        return self._fitted().findings(x)

    def p_value(self, x: Images) -> NDArray[np.float64]:
        """Return the share of normal images that score at least as high, (N,) in (0, 1].

        Raises:
            NotFittedError: if the detector was fitted without calibration.
        """
        return self._fitted().p_value(x)

    def predict(self, x: Images) -> NDArray[np.int64]:
        """Return 1 for images flagged at the false-positive rate ``fpr``, 0 for others.

        Raises:
            NotFittedError: if the detector was fitted without calibration.
            SettingsError: if too few normal images were held out to certify the rate.
        """
        return self._fitted().predict(x, fpr=self.fpr)
