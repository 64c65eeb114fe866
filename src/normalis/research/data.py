"""The arrays that experiments share: read once, fingerprinted, kept beside the records.

Images are put in the order of their file names, so that the same images are the same data however
they were listed. The fingerprint covers pixels, splits, labels and masks, and neither names nor
folders. The arrays lie in ``RESULTS/.arrays`` for workers, on this machine or another that sees
the folder; it is a cache and can be deleted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from normalis.datasets import Sample
from normalis.datasets.base import Split
from normalis.errors import DataError, RunError
from normalis.loading.arrays import ImageSettings, Loaded, Row, load, load_masks, to_unit
from normalis.research.experiments import Subset
from normalis.storage import content_hash, write_atomically

__all__ = ["Arrays", "Store", "nearest", "read_arrays", "select", "small"]

_TWIN_SIDE = 64  # pixels at which images are compared, as in the audit


@dataclass(frozen=True, eq=False, kw_only=True)
class Arrays:
    """A data set as experiments see it; N images, in the order of their names within a split.

    Attributes:
        pixels: (N, C, S, S) ``uint8``, or float with nominal range [0, 1].
        split: (N,) ``train``, ``validation`` or ``test``.
        is_anomalous: (N,) bool.
        path: (N,) below the data set's folder.
        patient_id: (N,) empty where unknown.
        position: (N,) relative position of a slice in its volume, NaN where unknown.
        masks: (N_test, S, S) bool of the test images; (0, S, S) if the data set has none.
        nearest_ncc: (N,) of a test image, the largest normalised cross-correlation with a training
            image of the whole data set; of a training image, with a test image. NaN elsewhere.
    """

    pixels: NDArray[Any]
    split: NDArray[np.str_]
    is_anomalous: NDArray[np.bool_]
    path: NDArray[np.str_]
    patient_id: NDArray[np.str_]
    position: NDArray[np.float32]
    masks: NDArray[np.bool_]
    nearest_ncc: NDArray[np.float32]

    def of(self, split: str) -> NDArray[Any]:
        """Return the pixels of one split."""
        found: NDArray[Any] = self.pixels[self.split == split]
        return found

    def loaded(self, keep: NDArray[np.bool_]) -> Loaded:
        """Return the images that ``keep`` (N,) marks as a fitted detector scores them."""
        pixels = self.pixels[keep]
        rows = [_row(Path(name), pixels.shape[2:]) for name in self.path[keep].tolist()]
        return Loaded(pixels=pixels, rows=rows, skipped=[], rule=None)

    @property
    def fingerprints(self) -> tuple[str, str]:
        """Return the fingerprint of everything and that of the training images."""
        train = _digest(self.of("train"))
        parts = [train, *(_digest(self.of(name)) for name in ("validation", "test"))]
        parts += [_digest(self.is_anomalous), _digest(self.masks)]
        return content_hash(parts), train

    def take(self, keep: NDArray[np.bool_]) -> Arrays:
        """Return the images that ``keep`` (N,) marks."""
        chosen = {f.name: getattr(self, f.name)[keep] for f in fields(self) if f.name != "masks"}
        test = keep[self.split == "test"]
        return Arrays(**chosen, masks=self.masks[test] if len(self.masks) else self.masks)

    def write(self, file: Path) -> None:
        """Write all arrays to one file."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}

        def save(path: Path) -> None:
            with path.open("wb") as opened:
                np.savez(opened, **arrays)

        write_atomically(file, save)

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read what `write` wrote.

        Raises:
            RunError: if the file is missing or damaged.
        """
        try:
            with np.load(file) as opened:
                return cls(**{f.name: opened[f.name] for f in fields(cls)})
        except (OSError, ValueError, KeyError) as error:
            raise RunError(f"{file}: cannot be read ({error}); plan the sweep again") from error


def _row(path: Path, shape: tuple[int, ...]) -> Row:
    sample = Sample(path=path, split="test", is_anomalous=None)
    return Row(
        sample=sample,
        path=path,
        slice_index=None,
        patient_id=None,
        is_anomalous=None,
        mask=None,
        kind=None,
        original_shape=(shape[0], shape[1]),
    )


def _digest(array: NDArray[Any]) -> str:
    head = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()


def select(arrays: Arrays, subset: Subset) -> Arrays:
    """Return the images that a subset keeps; see `Subset`."""
    train, test = arrays.split == "train", arrays.split == "test"
    keep = np.ones(len(train), bool)
    if subset.drop_train_twins is not None:
        keep &= ~(train & (arrays.nearest_ncc >= subset.drop_train_twins))
    if subset.drop_test_twins is not None:
        keep &= ~(test & (arrays.nearest_ncc >= subset.drop_test_twins))
    if subset.position is not None:
        if np.isnan(arrays.position[test]).any():
            raise DataError("a position range needs the slice position of every test image")
        low, high = subset.position
        keep &= ~test | ((arrays.position > low) & (arrays.position < high))
    chosen = arrays.take(keep)
    if subset.deduplicate_train is not None:
        chosen = chosen.take(_first_of_kind(chosen, subset.deduplicate_train))
    if subset.validation_share:
        chosen = _hold_out(chosen, subset.validation_share)
    if subset.train_limit is not None:
        chosen = chosen.take(_limited(chosen.split == "train", subset.train_limit))
    return chosen


def _first_of_kind(arrays: Arrays, threshold: float) -> NDArray[np.bool_]:
    """Mark all but the training images that resemble an earlier, kept one."""
    train = np.flatnonzero(arrays.split == "train")
    near = _correlations(arrays.pixels[train], arrays.pixels[train]) >= threshold
    keep = np.ones(len(arrays.split), bool)
    kept = np.zeros(len(train), bool)
    for i in range(len(train)):
        kept[i] = not (near[i] & kept).any()
    keep[train] = kept
    return keep


def _hold_out(arrays: Arrays, share: float) -> Arrays:
    """Move a share of the training normals to ``validation``, by patient or duplicate group."""
    train = np.flatnonzero(arrays.split == "train")
    groups: NDArray[Any] = arrays.patient_id[train]
    if (groups == "").any():
        from normalis.duplicates import duplicate_groups

        groups = duplicate_groups(arrays.pixels[train])
    names, member = np.unique(groups, return_inverse=True)
    order = np.random.default_rng(0).permutation(len(names))
    sizes = np.bincount(member)[order].cumsum()
    held = np.isin(member, order[sizes <= max(1, round(share * len(train)))])
    split = arrays.split.astype("<U10")
    split[train[held]] = "validation"
    return replace(arrays, split=split)


def _limited(train: NDArray[np.bool_], limit: int) -> NDArray[np.bool_]:
    keep = np.ones(len(train), bool)
    at = np.random.default_rng(0).permutation(np.flatnonzero(train))
    keep[at[limit:]] = False
    return keep


def _correlations(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float32]:
    """Return the normalised cross-correlation of every image of a with every one of b."""
    return _unit_rows(a) @ _unit_rows(b).T


def _unit_rows(pixels: NDArray[Any]) -> NDArray[np.float32]:
    rows = pixels.reshape(len(pixels), -1).astype(np.float32)
    rows -= rows.mean(1, keepdims=True)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
    return rows


def small(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return images at `_TWIN_SIDE` if they are larger, so that twins are the same at any size."""
    if pixels.shape[-1] <= _TWIN_SIDE:
        return pixels
    import torch
    from torch.nn import functional as F

    side = (_TWIN_SIDE, _TWIN_SIDE)
    parts = [
        F.interpolate(torch.from_numpy(pixels[i : i + 512]).float(), size=side, mode="area").numpy()
        for i in range(0, len(pixels), 512)
    ]
    return np.concatenate(parts)


def nearest(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float32]:
    """Return for each image of a its largest normalised cross-correlation with b, (len(a),)."""
    if not len(b):
        return np.full(len(a), np.nan, np.float32)
    parts = [_correlations(a[i : i + 512], b).max(1) for i in range(0, len(a), 512)]
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


class Store:
    """Reads data sets below a root, once each, and keeps their arrays beside the records.

    Args:
        results: the results folder.
        root: the folder whose subfolders are the data sets; None if all arrays are there already.
    """

    def __init__(self, results: str | Path, root: str | Path | None = None) -> None:
        self.folder = Path(results) / ".arrays"
        self.root = None if root is None else Path(root)
        self._whole: dict[str, Arrays] = {}
        self._known: dict[str, tuple[str, str]] = {}

    def add(self, arrays: Arrays) -> tuple[str, str]:
        """Keep arrays for workers; return their fingerprints."""
        data, train = arrays.fingerprints
        file = self.file(data)
        if not file.exists():
            arrays.write(file)
        return data, train

    def file(self, data: str) -> Path:
        """Return where the arrays with a fingerprint lie."""
        return self.folder / f"{data}.npz"

    def fingerprints(self, name: str, images: Mapping[str, Any], subset: Subset) -> tuple[str, str]:
        """Return the fingerprints of a part of a data set; reads the images on first use.

        Raises:
            DataError: if there is no such data set below the root.
        """
        key = content_hash([name, dict(images), repr(subset)])
        if key not in self._known:
            whole = content_hash([name, dict(images)])
            if whole not in self._whole:
                self._whole[whole] = self._read(name, images)
            self._known[key] = self.add(select(self._whole[whole], subset))
        return self._known[key]

    def get(self, data: str) -> Arrays:
        """Return the arrays with a fingerprint, from the cache.

        Raises:
            RunError: if they are not there.
        """
        return Arrays.read(self.file(data))

    def _read(self, name: str, images: Mapping[str, Any]) -> Arrays:
        if self.root is None:
            raise DataError(f"data set {name!r}: give the folder that holds it (--data)")
        path = self.root / name
        if not path.exists():
            held = (
                ", ".join(sorted(p.name for p in self.root.iterdir()))
                if self.root.is_dir()
                else "-"
            )
            raise DataError(f"{path}: there is no such data set; {self.root} holds {held}")
        return read_arrays(_prepared(path, images), images)


def _assemble(
    pixels: Mapping[str, NDArray[Any]],
    *,
    paths: Mapping[str, Sequence[str]],
    is_anomalous: NDArray[np.bool_],
    patients: Mapping[str, list[str]] | None = None,
    positions: Mapping[str, NDArray[Any]] | None = None,
    masks: NDArray[np.bool_] | None = None,
) -> Arrays:
    """Make `Arrays` of what is known of each split.

    Args:
        pixels: split -> (n, C, S, S).
        paths: split -> n paths below the data set's folder.
        is_anomalous: (n_test,) of the test images; all others are normal.
        patients: split -> n identifiers, empty where unknown.
        positions: split -> (n,) relative slice positions.
        masks: (n_test, S, S), None if the data set has none.
    """
    if len({part.dtype for part in pixels.values()}) > 1:  # some split has deeper files
        pixels = {split: to_unit(part) for split, part in pixels.items()}
    parts: dict[str, list[Any]] = {}
    side = pixels["train"].shape[-1]
    train, test = small(pixels["train"]), small(pixels["test"])
    ncc = {"train": nearest(train, test), "test": nearest(test, train)}
    kept_masks = np.zeros((0, side, side), bool)
    for split in (s for s in ("train", "validation", "test") if s in pixels):
        names = paths[split]
        n = len(names)
        order = np.array(sorted(range(n), key=lambda i: (Path(names[i]).name, names[i])))
        if split == "test" and masks is not None:
            kept_masks = np.asarray(masks[order], bool)
        row = {
            "pixels": pixels[split],
            "split": np.full(n, split),
            "is_anomalous": is_anomalous if split == "test" else np.zeros(n, bool),
            "path": np.array(names, dtype=str),
            "patient_id": np.array((patients or {}).get(split, [""] * n), dtype=str),
            "position": np.asarray((positions or {}).get(split, np.full(n, np.nan)), np.float32),
            "nearest_ncc": ncc.get(split, np.full(n, np.nan, np.float32)),
        }
        for key, value in row.items():
            parts.setdefault(key, []).append(value[order])
    return Arrays(**{k: np.concatenate(v) for k, v in parts.items()}, masks=kept_masks)


def _prepared(path: Path, images: Mapping[str, Any]) -> Path:
    """Return the array file beside the images if they were read with default settings, else path.

    ``arrays_64.npz`` holds the images at 64 x 64 as `normalis.loading.arrays` reads them, often
    with what
    file names do not say, such as the position of a slice.
    """
    file = path / f"arrays_{images.get('image_size', 64)}.npz"
    return file if file.is_file() and set(images) <= {"image_size"} else path


def read_arrays(path: Path, images: Mapping[str, Any]) -> Arrays:
    """Read a data set in any layout.

    Args:
        path: folder or file.
        images: fields of `normalis.loading.arrays.ImageSettings`.

    Raises:
        DataError: if it has no labelled test images, or nothing is readable.
    """
    from normalis.datasets import open_dataset

    dataset = _with_patients(open_dataset(path))
    settings = ImageSettings(**images)
    loaded: dict[str, Loaded] = {}
    splits: tuple[Split, ...] = ("train", "validation", "test")
    for split in splits:
        samples = dataset.split(split)
        if samples:
            rule = loaded["train"].rule if loaded else None
            loaded[split] = load(samples, settings, rule=rule, fit_rule=split == "train")
    test = loaded.get("test")
    if "train" not in loaded or test is None or any(r.is_anomalous is None for r in test.rows):
        raise DataError(
            f"{path}: an experiment needs training images and labelled test images, got "
            f"{dataset.counts()}"
        )
    has_masks = any(row.mask is not None for row in test.rows)
    rows = {split: part.rows for split, part in loaded.items()}
    return _assemble(
        {split: part.pixels for split, part in loaded.items()},
        paths={split: [_name(row, dataset.root) for row in part] for split, part in rows.items()},
        is_anomalous=np.array([bool(r.is_anomalous) for r in test.rows]),
        patients={split: [r.patient_id or "" for r in part] for split, part in rows.items()},
        positions={split: np.array([_position(r) for r in part]) for split, part in rows.items()},
        masks=(
            load_masks(test.rows, image_size=settings.image_size, keep_small=False)
            if has_masks
            else None
        ),
    )


def _with_patients(dataset: Any) -> Any:
    """Name patients by the known pattern of the file names, where there is one that fits all."""
    from normalis.datasets import offer_pattern, patients_from_pattern

    found = offer_pattern(dataset)
    try:
        return dataset if found is None else patients_from_pattern(dataset, found[1])
    except DataError:  # a few names do not fit: unknown is safer than half known
        return dataset


def _name(row: Any, root: Path) -> str:
    """Return an image's name below the data set's folder, its slice included."""
    if row.sample.index is not None:
        return str(row.header.get("name", row.sample.index))
    inside = row.path.is_relative_to(root)
    name = row.path.relative_to(root).as_posix() if inside else row.path.name
    return name if row.slice_index is None else f"{name}#{row.slice_index:04d}"


def _position(row: Any) -> float:
    found = row.header.get("slice_pos", row.header.get("slice_position"))
    return float("nan") if found is None else float(found)
