"""A fitted detector: everything that scoring needs, immutable, and what is saved.

Fitting an `normalis.AnomalyDetector`, which is settings, gives one. It is never changed: another
scorer, or calibration on the normal images of another hospital, gives another one that shares the
trained models. ::

    fitted = AnomalyDetector(image_size=64).fit("normal_scans/").fitted_
    fitted.save("model/")

    fitted = FittedDetector.load("model/")
    scores = fitted.anomaly_score("new_scans/")                # (N,), higher = more anomalous
    here = fitted.calibrate("our_normal_scans/")               # same models, our p-values
"""

from __future__ import annotations

from normalis.fitted.detector import FittedDetector, fitted_of

__all__ = ["FittedDetector", "fitted_of"]
