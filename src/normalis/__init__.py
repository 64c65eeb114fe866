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
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from normalis.audit import audit as check
    from normalis.datasets import open_dataset
    from normalis.detector import AnomalyDetector
    from normalis.errors import NormalisError
    from normalis.evaluation.of_detector import evaluate_detector as evaluate
    from normalis.fitted import FittedDetector
    from normalis.images import read_frames
    from normalis.report import write_report

__version__ = "0.2.0"

__all__ = [
    "AnomalyDetector",
    "FittedDetector",
    "NormalisError",
    "__version__",
    "check",
    "evaluate",
    "open_dataset",
    "read_frames",
    "write_report",
]

#: name -> "module:attribute"; torch takes seconds, so that nothing is imported before it is used.
_LAZY = {
    "AnomalyDetector": "normalis.detector:AnomalyDetector",
    "FittedDetector": "normalis.fitted:FittedDetector",
    "NormalisError": "normalis.errors:NormalisError",
    "check": "normalis.audit:audit",
    "evaluate": "normalis.evaluation.of_detector:evaluate_detector",
    "open_dataset": "normalis.datasets:open_dataset",
    "read_frames": "normalis.images:read_frames",
    "write_report": "normalis.report:write_report",
}

if not TYPE_CHECKING:  # a type checker would take every unknown name for granted

    def __getattr__(name: str) -> object:
        """Import the public names on first use."""
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, _, attribute = _LAZY[name].partition(":")
        return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
