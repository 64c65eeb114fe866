"""Every exception that normalis raises on purpose.

::

    NormalisError
    ├── DataError (ValueError)           a folder, manifest, array or image list is not usable
    │   ├── LayoutError                  the layout of DATA is unknown or ambiguous
    │   └── UnreadableImageError         one image cannot be read; callers skip and report it
    ├── SettingsError (ValueError)       a setting is out of its range or unknown
    ├── NotFittedError (ValueError, AttributeError)
    ├── TrainingError (RuntimeError)     training cannot go on, for instance a loss is not finite
    ├── RunError (RuntimeError)          a run folder is damaged, finished, or in use
    │   ├── UntrustedError               a file names code that it would run
    │   └── BackboneError                the feature network that a run needs is not there
    ├── MetricError (ValueError)         a metric is undefined for what was given
    └── MissingExtraError (ImportError)  an optional package is not installed

    NormalisWarning (UserWarning)        what a user should know and may go on with
    └── CalibrationWarning               what p-values promise less than one would expect

A message says what must hold, what was given, where, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

__all__ = [
    "BackboneError",
    "CalibrationWarning",
    "DataError",
    "LayoutError",
    "MetricError",
    "MissingExtraError",
    "NormalisError",
    "NormalisWarning",
    "NotFittedError",
    "RunError",
    "SettingsError",
    "TrainingError",
    "UnreadableImageError",
    "UntrustedError",
    "did_you_mean",
]


class NormalisError(Exception):
    """Base of all exceptions of this package; catch it to catch them all."""


class DataError(NormalisError, ValueError):
    """A folder, a manifest, an array or a list of images cannot be used as it is."""


class LayoutError(DataError):
    """The layout of a data folder is not recognised, or fits more than one description."""


class UnreadableImageError(DataError):
    """One image cannot be read; the work goes on without it and it is reported.

    Args:
        path: the file.
        reason: why it cannot be read and what to do, without the path.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = Path(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[Path, str]]:
        """Survive the trip back from a worker process."""
        return type(self), (self.path, self.reason)


class SettingsError(NormalisError, ValueError):
    """A setting is unknown or out of its range."""


class NotFittedError(NormalisError, ValueError, AttributeError):
    """A model or detector is used before ``fit`` or ``load``."""


class TrainingError(NormalisError, RuntimeError):
    """Training cannot go on."""


class RunError(NormalisError, RuntimeError):
    """A run folder is damaged, already finished, or being written by another process."""


class UntrustedError(RunError):
    """A file names code of neither this package nor an installed one, and nobody said to run it."""


class BackboneError(RunError):
    """The feature network that a run was fitted with is absent, or another one was found."""


class MetricError(NormalisError, ValueError):
    """A metric is undefined for the given scores and labels."""


class MissingExtraError(NormalisError, ImportError):
    """An optional dependency is needed and not installed."""


class NormalisWarning(UserWarning):
    """Base of all warnings of this package."""


class CalibrationWarning(NormalisWarning):
    """p-values rest on few units, or on images whose patients are unknown."""


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return ``"; did you mean 'ae-u'?"`` of the known name nearest to one, or nothing."""
    near = difflib.get_close_matches(name, list(known), 1, cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""
