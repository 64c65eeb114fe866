"""normalis learns what normal medical images look like and ranks new ones by how abnormal they are.

    from normalis import AnomalyDetector

    detector = AnomalyDetector(latent_dim=16, epochs=250)
    detector.fit("normal_scans/")                    # a folder, files, arrays or tensors
    scores = detector.anomaly_score("new_scans/")    # (N,), higher = more anomalous
    maps = detector.anomaly_map("new_scans/")        # (N, S, S)
    detector.save("model/")
    detector = AnomalyDetector.load("model/")

For triage and research, not for diagnosis.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "AnomalyDetector": "normalis.detector",
    "open_dataset": "normalis.datasets",
    "read_frames": "normalis.images",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    """Import the public names on first use: torch takes seconds."""
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
