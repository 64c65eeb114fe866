"""A plain folder of images, or one image: everything in it is taken as normal, for training."""

from __future__ import annotations

from pathlib import Path

from normalis.datasets.base import Dataset, Sample
from normalis.datasets.listing import list_images, quote_some
from normalis.errors import DataError

__all__ = ["LAYOUT", "read", "recognise"]

LAYOUT = "folder of images"

# Folder names that say "not normal". Such a folder is worth a sentence, not a refusal: `score`
# lists folders in the same way, and there anomalous images are what one expects.
_SUSPICIOUS = frozenset(
    {"abnormal", "anomalous", "anomaly", "lesion", "tumor", "tumour", "ungood"}
    | {"annotation", "annotations", "anomaly_mask", "ground_truth", "label", "labels", "mask"}
    | {"masks"}
)


def recognise(path: Path) -> bool:
    """Whether the path is a folder, or a file of no other layout; the last layout to be asked."""
    return path.exists()


def read(path: Path) -> Dataset:
    """List a folder recursively; every image is normal and in ``train``.

    Args:
        path: a folder, or one image file.

    Raises:
        DataError: if there is no file that may be an image.
    """
    images: tuple[Path, ...] = (path,)
    notes: tuple[str, ...] = ()
    if path.is_dir():
        listing = list_images(path)
        images = listing.images
        notes = listing.notes() + _suspicions(path, images)
    if not images:
        raise DataError(f"{path}: no image found in this folder or below it. {' '.join(notes)}")
    samples = tuple(Sample(path=p, split="train", is_anomalous=False) for p in images)
    return Dataset(name=path.stem, root=path, layout=LAYOUT, samples=samples, notes=notes)


def _suspicions(root: Path, images: tuple[Path, ...]) -> tuple[str, ...]:
    folders = {image.parent for image in images}
    names = {part for folder in folders for part in folder.relative_to(root).parts}
    odd = sorted(name for name in names if name.lower() in _SUSPICIOUS)
    masks = [image.name for image in images if image.stem.lower().endswith(("_mask", "_seg"))]
    notes = []
    if odd:
        notes.append(
            f"All images are taken as normal, those in {', '.join(odd)} too; "
            "to say otherwise, give a manifest with the columns path,label,split."
        )
    if masks:
        notes.append(f"{len(masks)} images look like masks by their names: {quote_some(masks)}.")
    return tuple(notes)
