"""``train/good`` and ``test/{good,<kind>}``: the layout of MVTec AD and of BMAD.

::

    train/good/                     normal; BMAD's nested form: train/good/img/
    valid/{good,Ungood}/            only the normal ones become the split `validation`
    test/good/, test/<kind>/        <kind> is the name of the anomaly; Ungood names none
    test/<kind>/{img,label}/        BMAD's nested form, masks in label/
    ground_truth/<kind>/NAME_mask.png, or anomaly_mask/<kind>/NAME.png

References: Bergmann et al., *MVTec AD*, CVPR 2019; Bao et al., *BMAD*, CVPR workshops 2024.
"""

from __future__ import annotations

from pathlib import Path

from normalis.datasets.base import Dataset, Sample, Split
from normalis.datasets.listing import Listing, folders_in, list_images, quote_some
from normalis.errors import DataError

__all__ = ["LAYOUT", "read", "recognise"]

LAYOUT = "MVTec/BMAD"

_MASK_FOLDERS = ("ground_truth", "anomaly_mask")
_INNER_MASKS = ("label", "anomaly_mask", "ground_truth")


def recognise(path: Path) -> bool:
    """Whether the folder has ``train/good/``."""
    return (path / "train" / "good").is_dir()


def read(path: Path) -> Dataset:
    """List the splits and pair the masks.

    Raises:
        DataError: if no folder holds an image.
    """
    notes: list[str] = []
    samples = [*_normals(path / "train", "train", notes)]
    for name in ("valid", "validation", "val"):
        samples += _normals(path / name, "validation", notes)
    samples += _tests(path, notes)
    if not samples:
        raise DataError(f"{path}: train/good and test hold no image")
    bare = [s.path.name for s in samples if s.is_anomalous and s.mask is None]
    if bare and any(s.mask is not None for s in samples):
        notes.append(f"{len(bare)} anomalous images have no mask: {quote_some(bare)}.")
    return Dataset(
        name=path.resolve().name,
        root=path,
        layout=LAYOUT,
        samples=tuple(samples),
        notes=tuple(notes),
    )


def _normals(folder: Path, split: Split, notes: list[str]) -> list[Sample]:
    """List the good images of ``train`` or ``valid``; say how many others are left aside."""
    samples: list[Sample] = []
    for kind, place in (folders_in(folder) if folder.is_dir() else {}).items():
        listing = _images(place)
        if kind.lower() == "good":
            samples += [Sample(path=p, split=split, is_anomalous=False) for p in listing.images]
            notes += listing.notes()
        elif listing.images:
            notes.append(
                f"Left aside {len(listing.images)} images of {folder.name}/{kind}: "
                f"{split} holds normal images only."
            )
    return samples


def _tests(root: Path, notes: list[str]) -> list[Sample]:
    test = root / "test"
    samples: list[Sample] = []
    kinds = folders_in(test) if test.is_dir() else {}
    for kind in sorted(kinds, key=lambda kind: kind.lower() != "good"):  # the normal ones first
        place = kinds[kind]
        if kind in _MASK_FOLDERS:
            continue
        listing = _images(place)
        notes += listing.notes()
        is_anomalous = kind.lower() != "good"
        masks = _masks(root, kind) if is_anomalous else {}
        samples += [
            Sample(
                path=p,
                split="test",
                is_anomalous=is_anomalous,
                kind=kind if is_anomalous and kind.lower() != "ungood" else None,
                mask=masks.get(f"{p.stem}_mask") or masks.get(p.stem),
            )
            for p in listing.images
        ]
    return samples


def _images(place: Path) -> Listing:
    """List the images of one class, which the nested form keeps in ``img/`` beside ``label/``."""
    inner = place / "img"
    return list_images(inner if inner.is_dir() else place)


def _masks(root: Path, kind: str) -> dict[str, Path]:
    """Masks of one kind by the stem of their name, from the first place that has any."""
    places = [root / folder / kind for folder in _MASK_FOLDERS]
    places += [root / "test" / folder / kind for folder in _MASK_FOLDERS]
    places += [root / "test" / kind / folder for folder in _INNER_MASKS]
    places += [root / folder for folder in _MASK_FOLDERS]
    for place in filter(Path.is_dir, places):
        if masks := list_images(place).images:
            return {mask.stem: mask for mask in masks}
    return {}
