"""``train/`` and ``test/{normal,tumor,annotation}``: the benchmark's layout of BraTS2021.

The mask of ``test/tumor/NAME_flair_77.png`` is ``test/annotation/NAME_seg_77.png``, or the file of
the same name.

Reference: Cai, Zhang, Chen, Cheng, *MedIAnomaly*, arXiv:2404.04518 (2024).
"""

from __future__ import annotations

from pathlib import Path

from normalis.datasets.base import Dataset, Sample, Split
from normalis.datasets.listing import Listing, list_images, quote_some
from normalis.errors import DataError

__all__ = ["LAYOUT", "read", "recognise"]

LAYOUT = "train + test/{normal,tumor,annotation}"


def recognise(path: Path) -> bool:
    """Whether the folder has ``train/``, ``test/normal/`` and ``test/tumor/``."""
    return all((path / part).is_dir() for part in ("train", "test/normal", "test/tumor"))


def read(path: Path) -> Dataset:
    """List the three folders and pair the masks.

    Raises:
        DataError: if none of the folders holds an image.
    """
    train, normal, tumor = (list_images(path / p) for p in ("train", "test/normal", "test/tumor"))
    annotation = path / "test" / "annotation"
    masks = list_images(annotation).images if annotation.is_dir() else ()
    by_name = {mask.stem: mask for mask in masks}
    samples = (
        *_samples(train, "train", is_anomalous=False, masks={}),
        *_samples(normal, "test", is_anomalous=False, masks={}),
        *_samples(tumor, "test", is_anomalous=True, masks=by_name),
    )
    if not samples:
        raise DataError(f"{path}: train, test/normal and test/tumor hold no image")
    bare = [s.path.name for s in samples if s.is_anomalous and s.mask is None]
    aside = Listing((), train.aside + normal.aside + tumor.aside)
    notes = (f"{len(bare)} tumour images have no mask: {quote_some(bare)}.",) if bare else ()
    return Dataset(
        name=path.resolve().name,
        root=path,
        layout=LAYOUT,
        samples=samples,
        notes=notes + aside.notes(),
    )


def _samples(
    listing: Listing, split: Split, *, is_anomalous: bool, masks: dict[str, Path]
) -> list[Sample]:
    return [
        Sample(path=p, split=split, is_anomalous=is_anomalous, mask=_mask_of(p, masks))
        for p in listing.images
    ]


def _mask_of(image: Path, masks: dict[str, Path]) -> Path | None:
    return masks.get(image.stem.replace("flair", "seg")) or masks.get(image.stem)
