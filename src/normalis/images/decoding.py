"""Files become resized images in native units: in threads, in order, from the cache if possible.

What comes out is not yet on [0, 1]: which map of intensities is right is known only once all
training images are seen (`normalis.loading.arrays`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normalis.errors import UnreadableImageError
from normalis.images.ahead import Budget, map_ahead
from normalis.images.alone import value_alone
from normalis.images.arrays import ArrayRows, open_array, row_of
from normalis.images.cache import ArrayCache, cache_key, stamp
from normalis.images.fit import fit_pixels
from normalis.images.limits import MAX_KEPT
from normalis.images.reader import describe, read_frames
from normalis.images.units import units_of_dtype

__all__ = [
    "Decoded",
    "DecodedImage",
    "Recipe",
    "Source",
    "decode",
    "decode_all",
    "decoded_once",
    "said_of_values",
]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decoded images depend on besides the files; arguments as in `read_frames`."""

    image_size: int
    channels: int
    plane: str = "axial"
    slice_range: tuple[float, float] = (0.0, 1.0)
    voi: bool = True

    @property
    def of_frames(self) -> tuple[Any, ...]:
        """What is asked of the file itself; how large its images become is another matter.

        So is ``voi``, which changes nothing of a file without a window.
        """
        return self.plane, self.slice_range, self.channels == 1


@dataclass(frozen=True)
class Source:
    """A file, or one row of an array file."""

    path: Path
    index: int | None = None
    array: str | None = None


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """One resized image: (C, S, S) in native units, and what is known of it."""

    pixels: NDArray[Any]
    slice_index: int | None
    original_shape: tuple[int, int]
    header: Mapping[str, Any]

    @property
    def is_deep(self) -> bool:
        """Whether the file holds more than 8 bits, so that a rule is needed."""
        return bool(self.pixels.dtype != np.uint8)

    @property
    def is_windowed(self) -> bool:
        """Whether the file's own window or VOI LUT was applied."""
        return "window" in self.header or "voi_lut" in self.header


@dataclass(frozen=True, eq=False)
class Decoded:
    """What became of one source: its images, or the reason why there are none.

    ``passing`` marks a reason that may be gone at the next try: no memory, no permission.
    """

    images: list[DecodedImage]
    reason: str | None = None
    passing: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of the images."""
        return sum(int(image.pixels.nbytes) for image in self.images)


class _Readers:
    """Recipes by which the same files will be read, one reader each, and what waits for them."""

    def __init__(self, recipes: Sequence[Recipe]) -> None:
        self.recipes = tuple(recipes)
        self._kept: dict[tuple[Source, Recipe], Decoded] = {}

    def others(self, recipe: Recipe) -> list[Recipe]:
        """Return the other readers' recipes that the same frames serve."""
        left = list(self.recipes)
        mine = next((r for r in left if replace(r, voi=recipe.voi) == recipe), None)
        if mine is None:
            return []
        left.remove(mine)
        return [other for other in left if other.of_frames == recipe.of_frames]

    def take(self, source: Source, recipe: Recipe) -> Decoded | None:
        """Return what another reader left, once."""
        return self._kept.pop((source, recipe), None)

    def leave(
        self, source: Source, recipe: Recipe, found: Mapping[Recipe, list[DecodedImage]]
    ) -> None:
        """Keep images for the other readers; what is not theirs, or too large, they decode."""
        for other, images in found.items():
            file = Decoded(images)
            has_no_window = recipe.voi and not any(image.is_windowed for image in images)
            if file.nbytes <= MAX_KEPT and (other.voi == recipe.voi or has_no_window):
                self._kept[source, other] = file


_readers: ContextVar[_Readers | None] = ContextVar("readers", default=None)


@contextmanager
def decoded_once(*recipes: Recipe) -> Iterator[None]:
    """Decode a file once for several readers, within this context.

    The first that reads a file leaves it, resized as the others ask for, until they come for it.
    What a reader never comes for takes memory until the end.

    Args:
        *recipes: one for each time that a file will be read, equal ones repeated.
    """
    token = _readers.set(_Readers(recipes))
    try:
        yield
    finally:
        _readers.reset(token)


def decode(
    sources: Iterable[Source], recipe: Recipe, *, workers: int | None = None
) -> Iterator[Decoded]:
    """Yield what became of each source, in order, a bounded number ahead of the consumer."""
    arrays, budget = _OpenArrays(), Budget()
    readers = _readers.get() or _Readers(())  # here, since threads have contexts of their own

    def read(numbered: tuple[int, Source]) -> Decoded:
        number, source = numbered
        if (left := readers.take(source, recipe)) is not None:
            budget.take(number, left.nbytes)
            return left
        return _read(source, recipe, arrays, partial(budget.take, number), readers)

    files = map_ahead(
        read, enumerate(sources), workers=workers, weigh=lambda file: file.nbytes, end=budget.end
    )
    for number, file in enumerate(files):
        budget.release(number)
        yield file


def decode_all(
    sources: Sequence[Source],
    recipe: Recipe,
    *,
    cache: ArrayCache | None = None,
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> list[Decoded]:
    """Decode all sources, or take them from the cache if no file has changed since.

    What could not be decoded is cached as well, unless its reason may pass by itself. Nothing is
    cached if a file changed while it was read.
    """
    stamps = None if cache is None else _stamps(sources)
    key = None if stamps is None else _key(sources, recipe, stamps)
    entry = None if cache is None or key is None else cache.get(key)
    if entry is not None:
        if progress is not None:
            progress(len(sources), len(sources))
        return _unpack(entry)
    files = []
    for done, file in enumerate(decode(sources, recipe, workers=workers), 1):
        files.append(file)
        if progress is not None:
            progress(done, len(sources))
    lasting = not any(f.passing for f in files)
    if cache is not None and key is not None and lasting and stamps == _stamps(sources):
        cache.put(key, _pack(files))
    return files


class _OpenArrays:
    """Array files, each opened once however many of its rows are read."""

    def __init__(self) -> None:
        self._open: dict[tuple[Path, str | None], NDArray[Any] | ArrayRows] = {}
        self._lock = Lock()

    def __call__(self, path: Path, name: str | None) -> NDArray[Any] | ArrayRows:
        with self._lock:
            if (path, name) not in self._open:
                self._open[path, name] = open_array(path, name)
            return self._open[path, name]


def _read(
    source: Source,
    recipe: Recipe,
    arrays: _OpenArrays,
    take: Callable[[int], None],
    readers: _Readers,
) -> Decoded:
    """Decode one source; whatever it raises is its own reason, and never the end of the run."""
    others: dict[Recipe, list[DecodedImage]] = {r: [] for r in readers.others(recipe)}
    try:
        found = Decoded(_images(source, recipe, arrays, take, others))
        readers.leave(source, recipe, others)
        return found
    except UnreadableImageError as error:
        cause = error.__cause__
        # Pillow's own OSErrors ("truncated") have no errno; those of the system do.
        system = getattr(cause, "errno", None) is not None
        lasting = isinstance(cause, FileNotFoundError) or not system
        return Decoded([], _printable(error.reason), not lasting or isinstance(cause, MemoryError))
    except Exception as error:
        return Decoded([], _printable(describe(error)), isinstance(error, MemoryError))


def _printable(reason: str) -> str:
    """Show what is no character, of the bytes that a damaged file may hold, as its escape."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in reason)


def _images(
    source: Source,
    recipe: Recipe,
    arrays: _OpenArrays,
    take: Callable[[int], None],
    others: Mapping[Recipe, list[DecodedImage]],
) -> list[DecodedImage]:
    """Return the images of a source, resized one by one, within `MAX_KEPT` bytes.

    ``others`` receives them resized by each of its recipes.
    """
    images: list[DecodedImage] = []
    kept = 0
    for frame in _frames(source, recipe, arrays):
        for other, found in others.items():
            found.append(_fitted(frame, other))
        image = _fitted(frame, recipe)
        take(image.pixels.nbytes)
        images.append(image)
        kept += image.pixels.nbytes
        if kept > MAX_KEPT:
            raise UnreadableImageError(
                source.path,
                f"its first {len(images)} images take more than {MAX_KEPT >> 20} MiB at "
                f"{recipe.image_size} x {recipe.image_size}; choose a smaller image size, or fewer "
                "slices, or split the file",
            )
    return images


def _frames(
    source: Source, recipe: Recipe, arrays: _OpenArrays
) -> Iterator[tuple[NDArray[Any], int | None, Mapping[str, Any]]]:
    """Yield pixels (C, H, W), number in the file and header of each image of a source."""
    if source.index is not None:
        opened = arrays(source.path, source.array)
        header = {
            "format": "array",
            "bits": 8 * opened.dtype.itemsize,
            "dtype": str(opened.dtype),
            "units": units_of_dtype(opened.dtype),
        }
        pixels = row_of(opened, source.index, source.path)
        yield pixels, None, header | said_of_values(pixels)
        return
    frames = read_frames(
        source.path,
        plane=recipe.plane,
        slice_range=recipe.slice_range,
        voi=recipe.voi,
        grey=recipe.channels == 1,
    )
    for frame in frames:
        yield frame.pixels, frame.slice_index, {**frame.header, **said_of_values(frame.pixels)}


def said_of_values(pixels: NDArray[Any]) -> dict[str, Any]:
    """Return the header's ``value_alone`` of an image one value of which is far from all others."""
    found = None if pixels.dtype == np.uint8 else value_alone(pixels)
    return {} if found is None else {"value_alone": tuple(found)}


def _fitted(
    frame: tuple[NDArray[Any], int | None, Mapping[str, Any]], recipe: Recipe
) -> DecodedImage:
    pixels, slice_index, header = frame
    fitted = fit_pixels(pixels, image_size=recipe.image_size, channels=recipe.channels)
    return DecodedImage(fitted, slice_index, (pixels.shape[1], pixels.shape[2]), header)


# --- the cache's entries ------------------------------------------------------------------------


def _stamps(sources: Sequence[Source]) -> list[tuple[int, int, int]] | None:
    """Return a stamp per file; None if caching is not worth it (arrays) or not safe."""
    if any(s.index is not None for s in sources):
        return None
    stamps = [stamp(s.path) for s in sources]
    known = [s for s in stamps if s is not None]
    return known if len(known) == len(stamps) else None


def _key(sources: Sequence[Source], recipe: Recipe, stamps: Sequence[tuple[int, int, int]]) -> str:
    paths = [str(s.path.absolute()) for s in sources]
    return cache_key(asdict(recipe), zip(paths, stamps, strict=True))


def _pack(files: Sequence[Decoded]) -> dict[str, NDArray[Any]]:
    """Turn decoded files into arrays: 8-bit pixels, deeper ones, and the rest as JSON."""
    images = [i for f in files for i in f.images]
    notes = [
        {
            "reason": f.reason,
            "images": [
                [not i.is_deep, i.slice_index, i.original_shape, i.header] for i in f.images
            ],
        }
        for f in files
    ]
    packed = {"notes": np.frombuffer(json.dumps(notes).encode(), np.uint8)}
    for name, dtype in (("eight_bit", np.uint8), ("deep", np.float32)):
        chosen = [i.pixels for i in images if i.pixels.dtype == dtype]
        if chosen:
            packed[name] = np.stack(chosen)
    return packed


def _unpack(entry: Mapping[str, NDArray[Any]]) -> list[Decoded]:
    eight_bit, deep = iter(entry.get("eight_bit", ())), iter(entry.get("deep", ()))
    notes = json.loads(entry["notes"].tobytes())
    files = []
    for note in notes:
        images = [
            DecodedImage(
                next(eight_bit if small else deep), index, (shape[0], shape[1]), _tuples(header)
            )
            for small, index, shape, header in note["images"]
        ]
        files.append(Decoded(images, note["reason"]))
    return files


def _tuples(value: Any) -> Any:
    """Undo JSON's turning of tuples into lists, so that a cached header equals a fresh one."""
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
