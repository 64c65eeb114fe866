"""Optional packages: imported when needed, or answered with the line that installs them."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

from normalis.errors import MissingExtraError

__all__ = ["install_line", "packages_of", "require"]


def install_line(extra: str) -> str:
    """Return the line that installs an extra where the user is.

    Args:
        extra: name of an extra of pyproject.toml.

    Returns:
        From a clone a line with the clone's folder; where the package came from the index its
        name; else, for instance from a wheel, the packages themselves.
    """
    pip = _pip()
    clone = Path(__file__).resolve().parents[3]
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
