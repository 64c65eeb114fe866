"""Settings of a detector, and the verbs that users need: fit, score, save, load.

A detector is settings. Fitting it on normal images gives a `normalis.fitted.FittedDetector`, which
is immutable, scores, and is what is saved; the detector holds it and hands its verbs on.

The vocabulary is scikit-learn's and PyOD's: ``fit`` returns self, fitted state ends in ``_``,
``get_params`` and ``clone`` work. As in PyOD, and unlike scikit-learn's outlier detectors, **higher
scores are more anomalous** and ``predict`` returns 1 for anomalous, 0 for normal.
"""

from __future__ import annotations

from normalis.detector.estimator import AnomalyDetector

__all__ = ["AnomalyDetector"]
