"""A feature network that the user brings: one file, ONNX or TorchScript, and a JSON beside it.

::

    my_network.onnx    (B, 3, S, S) float32, normalised  ->  one map (B, channels, h, w) per tap
    my_network.json    {"input_size": 224, "mean": [...], "std": [...],
                        "taps": [{"name": "a", "stride": 14, "channels": 384}, ...]}

``mean`` and ``std`` are those of red, green and blue in [0, 1] with which the network was trained;
``name``, ``source`` and ``licence`` are kept for the reader. docs/howto/own_backbone.md says how to
write both. The SHA-256 that a run remembers covers both files.

What a file may do is bounded: an ONNX graph is read from memory, so that it can name no other file,
and has no custom operators; TorchScript has no Python but more reach, and is opened only when the
user names it (`normalis.backbones.offer`).
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from normalis.backbones.base import Backbone, Tap
from normalis.errors import SettingsError
from normalis.errors.extras import require

__all__ = ["Description", "FileBackbone", "fingerprint"]

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
Run = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True, kw_only=True)
class Description:
    """What the JSON beside a network says.

    Attributes:
        name: for messages.
        input_size: side of the images that it takes.
        mean: of red, green and blue in [0, 1].
        std: likewise.
        taps: what it returns, in order.
    """

    name: str
    input_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    taps: tuple[Tap, ...]

    @classmethod
    def read(cls, path: Path) -> Description:
        """Read the JSON of a network's file.

        Raises:
            SettingsError: if it is absent or does not say what it must.
        """
        file = path.with_suffix(".json")
        if not file.is_file():
            raise SettingsError(
                f"{file}: a network of your own needs this file beside it, with input_size, mean, "
                "std and taps (docs/howto/own_backbone.md)"
            )
        try:
            said = json.loads(file.read_text(encoding="utf-8"))
            return cls(
                name=str(said.get("name", path.stem)),
                input_size=int(said["input_size"]),
                mean=tuple(map(float, said.get("mean", _IMAGENET["mean"]))),
                std=tuple(map(float, said.get("std", _IMAGENET["std"]))),
                taps=tuple(
                    Tap(str(t["name"]), int(t["stride"]), int(t["channels"])) for t in said["taps"]
                ),
            )._checked()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SettingsError(
                f"{file}: must hold input_size, mean, std and taps, each tap with name, stride and "
                f"channels ({type(error).__name__}: {error})"
            ) from error

    def _checked(self) -> Description:
        names = [tap.name for tap in self.taps]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"taps must have different names, got {names}")
        if any("+" in name or not name for name in names):
            raise ValueError(f"names of taps must not be empty nor hold '+', got {names}")
        if self.input_size < 16 or any(t.stride < 1 or t.channels < 1 for t in self.taps):
            raise ValueError("input_size must be at least 16, strides and channels at least 1")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError("mean and std must have three numbers each, std above 0")
        return self


def fingerprint(path: Path) -> str:
    """Return the SHA-256 of a network's file and of the JSON beside it.

    Raises:
        SettingsError: if a file is absent.
    """
    Description.read(path)
    if not path.is_file():
        raise SettingsError(f"{path}: there is no such file")
    both = hashlib.sha256(path.read_bytes())
    both.update(path.with_suffix(".json").read_bytes())
    return both.hexdigest()


class FileBackbone(Backbone):
    """A network read from a file.

    Args:
        description: of the JSON.
        sha256: of both files.
        run: normalised images (B, 3, S, S) -> maps in the order of the taps.
    """

    def __init__(self, description: Description, sha256: str, run: Run) -> None:
        self.name = description.name
        self.sha256 = sha256
        self.input_size = description.input_size
        self.taps = description.taps
        self._mean = torch.tensor(description.mean).view(3, 1, 1)
        self._std = torch.tensor(description.std).view(3, 1, 1)
        self._run = run

    @classmethod
    def open(cls, path: Path, device: str = "cpu") -> FileBackbone:
        """Read a network.

        Raises:
            SettingsError: if a file is absent or is not what it should be.
            MissingExtraError: for ONNX without the extra ``onnx``.
        """
        sha256 = fingerprint(path)
        read = _onnx if path.suffix == ".onnx" else _torchscript
        return cls(Description.read(path), sha256, read(path, device))

    def features(self, rgb: Tensor, taps: Sequence[str]) -> dict[str, Tensor]:
        """Return the maps of all taps, each checked against the description."""
        size = (self.input_size, self.input_size)
        unit = (rgb + 1) / 2
        if unit.shape[2:] != size:
            unit = F.interpolate(unit, size, mode="bilinear", antialias=True)
        x = (unit - self._mean.to(rgb)) / self._std.to(rgb)
        maps = self._run(x.contiguous())
        if len(maps) != len(self.taps):
            raise SettingsError(
                f"{self.name}: its JSON lists {len(self.taps)} taps, and it returns {len(maps)}"
            )
        for tap, found in zip(self.taps, maps, strict=True):
            self._check(tap, found, len(rgb))
        return {tap.name: found for tap, found in zip(self.taps, maps, strict=True)}

    def _check(self, tap: Tap, found: Tensor, images: int) -> None:
        side = self.input_size / tap.stride
        fits = found.dim() == 4 and tuple(found.shape[:2]) == (images, tap.channels)
        if not fits or any(abs(n - side) > 1 for n in found.shape[2:]):
            raise SettingsError(
                f"{self.name}: tap {tap.name} must be ({images}, {tap.channels}, h, w) with h and "
                f"w about {side:g}, got {tuple(found.shape)}: correct the JSON or the export"
            )


def _onnx(path: Path, device: str) -> Run:
    runtime = require("onnxruntime", extra="onnx", why=f"the feature network {path.name}")
    model = path.read_bytes()
    sessions: dict[int, Any] = {}

    def session() -> Any:
        # Where images are scored one batch a thread, each computes alone.
        threads = torch.get_num_threads()
        if threads not in sessions:
            options = runtime.SessionOptions()
            options.intra_op_num_threads = threads
            options.log_severity_level = 3
            sessions[threads] = runtime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
        return sessions[threads]

    try:
        inputs = session().get_inputs()
    except Exception as error:  # the runtime's own exceptions share no base
        raise SettingsError(
            f"{path}: is not an ONNX network in one file ({str(error)[:200]}); export it with its "
            "weights inside (external_data=False)"
        ) from error
    if len(inputs) != 1:
        raise SettingsError(f"{path}: must take one input, the images, got {len(inputs)}")
    name = inputs[0].name

    def run(x: Tensor) -> list[Tensor]:
        try:
            found = session().run(None, {name: x.cpu().numpy()})
        except Exception as error:
            raise SettingsError(
                f"{path}: cannot take images {tuple(x.shape)} ({str(error)[:200]}); export it with "
                "a free batch size, and state its input_size in the JSON"
            ) from error
        return [torch.from_numpy(f).to(device) for f in found]

    return run


def _torchscript(path: Path, device: str) -> Run:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # users have such files still
            network = torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise SettingsError(f"{path}: is not TorchScript ({str(error)[:200]})") from error

    def run(x: Tensor) -> list[Tensor]:
        try:
            found = network(x)
        except RuntimeError as error:
            raise SettingsError(
                f"{path}: cannot take images {tuple(x.shape)} ({str(error)[-200:]})"
            ) from error
        return [found] if isinstance(found, Tensor) else list(found)

    return run
