"""``train/`` and ``test/{normal,tumor,annotation}``: the benchmark's layout of BraTS2021.

The mask of ``test/tumor/NAME_flair_77.png`` is ``test/annotation/NAME_seg_77.png``, or the file of
the same name; in sub-folders, that of the same path (`normalis.datasets.pairing`).

Reference: Cai, Zhang, Chen, Cheng, *MedIAnomaly*, arXiv:2404.04518 (2024).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from normalis.datasets.base import Dataset, Options, Sample, Split
from normalis.datasets.listing import Listing, folders_in, list_images, quote_some
from normalis.datasets.pairing import Pairs, of_no_images, pair_masks
from normalis.datasets.words import is_class_name
from normalis.errors import DataError

__all__ = ["LAYOUT", "read", "recognise"]

LAYOUT = "train + test/{normal,tumor,annotation}"


def recognise(path: Path, options: Options | None = None) -> bool:
    """Whether the folder has ``train/`` without classes, ``test/normal/`` and ``test/tumor/``."""
    if not all((path / part).is_dir() for part in ("train", "test/normal", "test/tumor")):
        return False
    return not any(map(is_class_name, folders_in(path / "train")))


def read(path: Path, options: Options | None = None) -> Dataset:
    """List the three folders and pair the masks.

    Raises:
        DataError: if none of the folders holds an image, or two masks have one name.
    """
    train, normal, tumor = (list_images(path / p) for p in ("train", "test/normal", "test/tumor"))
    annotation = path / "test" / "annotation"
    marks = list_images(annotation) if annotation.is_dir() else Listing(images=(), aside=Counter())
    masks = marks.images
    pairs = _pairs(tumor, path / "test" / "tumor", masks, annotation)
    of_normal = _pairs(normal, path / "test" / "normal", pairs.left, annotation)
    samples = (
        *_samples(train, "train", is_anomalous=False),
        *_samples(normal, "test", is_anomalous=False, pairs=of_normal),
        *_samples(tumor, "test", is_anomalous=True, pairs=pairs),
    )
    pairs = replace(pairs, left=of_normal.left)
    if not samples:
        raise DataError(f"{path}: train, test/normal and test/tumor hold no image")
    return Dataset(
        name=path.resolve().name,
        root=path,
        layout=LAYOUT,
        samples=samples,
        notes=(*_notes(tumor, pairs), *of_no_images(marks), *_joined(train, normal, tumor).notes()),
    )


def _pairs(listing: Listing, folder: Path, masks: Iterable[Path], annotation: Path) -> Pairs:
    return pair_masks(
        ((image, image.relative_to(folder)) for image in listing.images),
        ((mask, mask.relative_to(annotation)) for mask in masks),
    )


def _samples(
    listing: Listing, split: Split, *, is_anomalous: bool, pairs: Pairs | None = None
) -> list[Sample]:
    found = pairs or Pairs()
    return [
        Sample(path=p, split=split, is_anomalous=is_anomalous, **found.of(p))  # type: ignore[arg-type]
        for p in listing.images
    ]


def _notes(tumor: Listing, pairs: Pairs) -> list[str]:
    bare = [p.name for p in tumor.images if p not in pairs.masks]
    notes = [f"{len(bare)} tumour images have no mask: {quote_some(bare)}."] if bare else []
    return notes + pairs.notes((), any_masks=True)


def _joined(*listings: Listing) -> Listing:
    """Return what several listings left aside."""
    return Listing(
        images=(),
        aside=sum((one.aside for one in listings), Counter()),
        outputs=tuple(folder for one in listings for folder in one.outputs),
        broken=tuple(entry for one in listings for entry in one.broken),
    )
