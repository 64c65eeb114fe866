"""A shelf of frozen feature networks: one file each, listed in `BACKBONES`, opened on use.

Where a network's name is expected, the path of a file of one's own is accepted as well (ONNX or
TorchScript with a JSON beside it, `normalis.backbones.file`, docs/howto/own_backbone.md).
"""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from normalis.errors import BackboneError, SettingsError, UntrustedError, did_you_mean
from normalis.shelf import Shelf, may_run

if TYPE_CHECKING:
    import torch

    from normalis.backbones.base import Backbone

__all__ = ["BACKBONES", "check_backbone", "offer", "open_backbone"]

#: network -> "module:Class"; the first is the default.
BACKBONES = Shelf(
    "backbone",
    {
        "efficientnet-lite0": "normalis.backbones.efficientnet_lite0:EfficientNetLite0",
    },
)

ENDINGS = (".onnx", ".pt", ".ts", ".torchscript")
"""Of files that hold a network; the first is ONNX, the others TorchScript."""

_OFFERED: dict[str, str] = {}  # SHA-256 -> path of a file that the user has named


def check_backbone(name: str) -> None:
    """Raise unless a name is on the shelf or the path of a file.

    Raises:
        SettingsError: naming the nearest known one.
    """
    if name in BACKBONES or name.endswith(ENDINGS):
        return
    hint = did_you_mean(name, BACKBONES)
    raise SettingsError(
        f"backbone must be one of {', '.join(BACKBONES)}, or a file of your own ending in "
        f"{', '.join(ENDINGS)}, got {name!r}{hint}"
    )


def open_backbone(name: str, *, sha256: str = "", device: torch.device | str = "cpu") -> Backbone:
    """Return a network; each is read once per process and device.

    Args:
        name: of `BACKBONES`, or a path.
        sha256: what a run remembers of the weights; empty when a run is made.
        device: where it computes.

    Raises:
        SettingsError: if there is no such network, or its weights cannot be read.
        BackboneError: if it is not the one that the run was fitted with, or not there any more.
        UntrustedError: if it is TorchScript that only the run has named.
    """
    check_backbone(name)
    if name in BACKBONES:
        found = _listed(name, str(device))
    elif sha256:
        found = _of_run(name, sha256, str(device))
    else:
        found = _file(str(Path(name).resolve()), str(device))
    if sha256 and found.sha256 != sha256:
        raise BackboneError(
            f"backbone {name}: the run was fitted with the weights whose SHA-256 is {sha256}, and "
            f"found are {found.sha256}; offer the right file, or fit again"
        )
    return found


def offer(path: str | Path) -> str:
    """Put a file of the user's on the shelf, so that a loaded run that needs it finds it.

    A TorchScript file is opened for a loaded run only after this: a run folder may come from
    anywhere, and the path in it must not be enough.

    Returns:
        Its SHA-256, as `Backbone.sha256` states it.

    Raises:
        SettingsError: if it cannot be read.
    """
    from normalis.backbones.file import fingerprint

    check_backbone(str(path))
    sha256 = fingerprint(Path(path))
    _OFFERED[sha256] = str(Path(path).resolve())
    return sha256


@cache
def _listed(name: str, device: str) -> Backbone:
    import torch

    # Opened where nothing is recorded, whatever surrounds the call: it is kept for others.
    with torch.inference_mode(False):
        found: Backbone = BACKBONES.load(name).open(device)
    return found


@lru_cache(maxsize=8)
def _file(path: str, device: str) -> Backbone:
    import torch

    from normalis.backbones.file import FileBackbone

    with torch.inference_mode(False):
        return FileBackbone.open(Path(path), device)


def _of_run(path: str, sha256: str, device: str) -> Backbone:
    """Return the network that a run names by its hash."""
    if sha256 in _OFFERED:
        return _file(_OFFERED[sha256], device)
    if path.endswith(ENDINGS[0]) and Path(path).is_file():
        return _file(str(Path(path).resolve()), device)
    need = f"the run needs the feature network {path} (SHA-256 {sha256})"
    how = "with --backbone FILE, in Python FittedDetector.load(run, backbone=FILE)"
    if not Path(path).is_file():
        raise BackboneError(f"{need}, which is not there: name the file {how}")
    if may_run():
        return _file(str(Path(path).resolve()), device)
    raise UntrustedError(
        f"{need}, which holds TorchScript and is opened only if you name it: {how}"
    )
