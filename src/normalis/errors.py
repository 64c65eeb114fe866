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
import importlib
import importlib.metadata
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

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
    "install_line",
    "packages_of",
    "require",
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


def install_line(extra: str) -> str:
    """Return the line that installs an extra where the user is.

    Args:
        extra: name of an extra of pyproject.toml.

    Returns:
        From a clone a line with the clone's folder; where the package came from the index its
        name; else, for instance from a wheel, the packages themselves.
    """
    pip = _pip()
    clone = Path(__file__).resolve().parents[2]
    if (clone / "pyproject.toml").is_file() and (clone / "src" / "normalis").is_dir():
        return f"{pip} install -e '{clone}[{extra}]'"
    if _is_from_the_index():
        return f"{pip} install 'normalis[{extra}]'"
    return " ".join([pip, "install", *(f"'{package}'" for package in packages_of(extra))])


def packages_of(extra: str) -> list[str]:
    """Return what an extra installs, as requirements without their markers, in alphabetical order.

    Args:
        extra: name of an extra of pyproject.toml; one that names another brings that one's, too.
    """
    found: set[str] = set()
    for line in importlib.metadata.requires("normalis") or []:
        requirement, _, marker = line.partition(";")
        if f"extra == '{extra}'" in marker.replace('"', "'"):
            inner = _EXTRA.match(requirement)
            found.update(packages_of(inner[1]) if inner else [requirement.strip()])
    return sorted(found)


_EXTRA = re.compile(r"normalis\[([\w-]+)\]")


def _is_from_the_index() -> bool:
    """Return whether pip found the package on an index: then it notes no address of its own."""
    try:
        found = importlib.metadata.distribution("normalis")
    except importlib.metadata.PackageNotFoundError:
        return True
    return found.read_text("direct_url.json") is None


def _pip() -> str:
    """Return how this environment's pip is called: by its path unless it is the shell's own."""
    own = Path(sys.executable).parent
    found = shutil.which("pip")
    return "pip" if found and Path(found).parent == own else f"{sys.executable} -m pip"


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return ``"; did you mean 'ae-u'?"`` of the known name nearest to one, or nothing."""
    near = difflib.get_close_matches(name, list(known), 1, cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""


def require(module: str, *, extra: str, why: str) -> ModuleType:
    """Import an optional module, or say how to install it.

    Args:
        module: name to import, for instance ``"ray"``.
        extra: the extra of normalis that brings it.
        why: what needs it, for the message.

    Returns:
        The imported module.

    Raises:
        MissingExtraError: if it is not installed; the message holds the install line.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{why} needs the package {module.partition('.')[0]!r}, which is not installed: "
            f"{install_line(extra)}"
        ) from error
