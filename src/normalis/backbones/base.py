"""The contract of a feature network: images in, maps of features out; nothing is ever trained.

::

    x (B, C, S, S) in [-1, 1]  ->  {tap: (B, channels, h, w)} float32, h = w = about S / stride

A tap is a place in the network whose features are read. What a network sees of an image does not
depend on the images beside it.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from normalis.errors import DataError, SettingsError

__all__ = ["Backbone", "Tap"]


class Tap(NamedTuple):
    """A place whose features are read.

    Attributes:
        name: short, unique in its network.
        stride: pixels of the input per cell of the map.
        channels: features of a cell.
    """

    name: str
    stride: int
    channels: int


class _Last(threading.local):
    """What each network saw last, by thread: the images and the maps of the taps asked for."""

    def __init__(self) -> None:
        self.seen: WeakKeyDictionary[Backbone, tuple[Tensor, dict[str, Tensor]]] = (
            WeakKeyDictionary()
        )


_LAST = _Last()


class Backbone(ABC):
    """A frozen feature network.

    The maps of the last batch are kept, per thread: methods that share a network and look at the
    same images one after the other, such as the members of a panel, or a score and a map, then
    share one pass.

    Attributes:
        name: what settings and messages call it.
        sha256: of the weights, which a run remembers.
        input_size: side of the square that it sees best, in pixels.
        taps: what can be read, shallow first.
    """

    name: str
    sha256: str
    input_size: int
    taps: Sequence[Tap]
    #: Images at once on a processor, so that the widest layer's maps stay in its cache.
    chunk: ClassVar[int] = 8
    #: More images than this are not kept: that is a training set, and memory.
    keep: ClassVar[int] = 128

    @abstractmethod
    def features(self, rgb: Tensor, taps: Sequence[str]) -> dict[str, Tensor]:
        """Return maps of images (B, 3, S, S) in [-1, 1], at least of the taps named."""

    def tap(self, name: str) -> Tap:
        """Return a tap by its name.

        Raises:
            SettingsError: if there is none of that name.
        """
        for tap in self.taps:
            if tap.name == name:
                return tap
        known = ", ".join(tap.name for tap in self.taps)
        raise SettingsError(f"taps of {self.name} are {known}, got {name!r}")

    def maps(self, x: Tensor, taps: Sequence[str]) -> dict[str, Tensor]:
        """Return the maps of some taps.

        Args:
            x: (B, C, S, S) in [-1, 1], with 1 channel, which is repeated, or 3.
            taps: their names.

        Returns:
            tap -> (B, channels, h, w) float32, not to be changed in place.

        Raises:
            SettingsError: if there is no such tap.
            DataError: if a feature is not a finite number.
        """
        for name in taps:
            self.tap(name)
        if torch.compiler.is_compiling() or len(x) > self.keep:
            return self._compute(x, taps)
        seen, kept = _LAST.seen.get(self, (x[:0], {}))
        if seen.device != x.device or not torch.equal(seen, x):
            seen, kept = x.detach().clone(), {}
        missing = [name for name in taps if name not in kept]
        if missing:
            kept = kept | self._compute(x, missing)
            _LAST.seen[self] = (seen, kept)
        return {name: kept[name] for name in taps}

    @torch.no_grad()
    def _compute(self, x: Tensor, taps: Sequence[str]) -> dict[str, Tensor]:
        if torch.compiler.is_compiling():
            found = self.features(x.expand(-1, 3, -1, -1), taps)
            return {name: found[name].float() for name in taps}
        parts: dict[str, list[Tensor]] = {name: [] for name in taps}
        for some in x.split(self.chunk if x.device.type == "cpu" else self.keep):
            rgb = some.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
            found = self.features(rgb, taps)
            for name, maps in parts.items():
                maps.append(found[name].float())
        whole = {name: torch.cat(maps) for name, maps in parts.items()}
        for name, value in whole.items():
            if not torch.isfinite(value).all():
                raise DataError(f"{self.name}: features of tap {name} must be finite numbers")
        return whole
