"""``train/good`` and ``test/{good,<kind>}``: the layout of MVTec AD and of BMAD.

::

    train/good/                     normal; BMAD's nested form: train/good/img/
    valid/{good,Ungood}/            only the normal ones become the split `validation`
    test/good/, test/<kind>/        <kind> is the name of the anomaly; Ungood names none
    test/<kind>/{img,label}/        BMAD's nested form, masks in label/
    ground_truth/<kind>/NAME_mask.png, or anomaly_mask/<kind>/NAME.png

``good`` may be another word for normal (``normal``, ``healthy``; `normalis.datasets.words`), in
training and in test. A folder ``train`` that holds several classes is not of this layout. Masks
are paired by their path below the folder of masks (`normalis.datasets.pairing`).

References: Bergmann et al., *MVTec AD*, CVPR 2019; Bao et al., *BMAD*, CVPR workshops 2024;
Bergmann et al., *Beyond dents and scratches* (MVTec LOCO), IJCV 2022.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePath

from normalis.datasets.base import Dataset, Options, Sample, Split
from normalis.datasets.listing import Listing, folders_in, list_images
from normalis.datasets.pairing import Pairs, below_masks, divide, of_no_images, pair_masks
from normalis.datasets.words import is_mask_name, meaning
from normalis.errors import DataError
from normalis.errors.words import counted

__all__ = ["LAYOUT", "read", "recognise"]

LAYOUT = "MVTec/BMAD"

_NO_KIND = ("ungood", "anomaly", "anomalous", "abnormal", "bad", "1")


def recognise(path: Path, options: Options | None = None) -> bool:
    """Whether the folder has ``train/good/``, or ``test/`` and one normal class in ``train/``."""
    if (path / "train" / "good").is_dir():
        return True
    if not ((path / "train").is_dir() and (path / "test").is_dir()):
        return False
    classes = [name for name in folders_in(path / "train") if not is_mask_name(name)]
    tests = folders_in(path / "test")
    return (
        len(classes) == 1
        and meaning(classes[0]) == "normal"
        and any(meaning(name) == "normal" for name in tests)
    )


def read(path: Path, options: Options | None = None) -> Dataset:
    """List the splits and pair the masks.

    Raises:
        DataError: if no folder holds an image, or two masks have one name.
    """
    notes: list[str] = []
    samples = [*_normals(path / "train", "train", notes)]
    for name in ("valid", "validation", "val"):
        samples += _normals(path / name, "validation", notes)
    samples += _tests(path, notes)
    if not samples:
        raise DataError(f"{path}: train/good and test hold no image")
    return Dataset(
        name=path.resolve().name,
        root=path,
        layout=LAYOUT,
        samples=tuple(samples),
        notes=tuple(dict.fromkeys(notes)),
    )


def _normals(folder: Path, split: Split, notes: list[str]) -> list[Sample]:
    """List the good images of ``train`` or ``valid``; say how many others are left aside."""
    samples: list[Sample] = []
    for kind, place in (folders_in(folder) if folder.is_dir() else {}).items():
        listing, pairs = _images(place)
        if meaning(kind) == "normal":
            samples += [
                Sample(path=p, split=split, is_anomalous=False, **pairs.of(p))  # type: ignore[arg-type]
                for p in listing.images
            ]
            notes += [*listing.notes(), *pairs.notes((), any_masks=True)]
        elif listing.images:
            notes.append(
                f"Left aside {counted(len(listing.images), 'image')} of {folder.name}/{kind}: "
                f"{split} holds normal images only."
            )
    return samples


def _tests(root: Path, notes: list[str]) -> list[Sample]:
    test = root / "test"
    folders = folders_in(test) if test.is_dir() else {}
    kinds = [name for name in folders if not is_mask_name(name)]
    images: dict[Path, str] = {}
    apart = [*_apart(root), *_apart(test)]
    masks = [mask for _, found in apart for mask in found]
    notes += [said for listing, _ in apart for said in of_no_images(listing)]
    for kind in sorted(kinds, key=lambda kind: meaning(kind) != "normal"):  # the normal ones first
        listing = list_images(folders[kind])
        notes += listing.notes()
        shown, marks = divide(listing.images, folders[kind])
        images |= dict.fromkeys(shown, kind)
        masks += [(mask, PurePath(kind, below_masks(mask, folders[kind]))) for mask in marks]
    pairs = pair_masks(((path, _place(path, test)) for path in images), masks)
    anomalous = [path for path, kind in images.items() if meaning(kind) != "normal"]
    notes += pairs.notes(anomalous, any_masks=bool(masks))
    return [_sample(path, kind, pairs) for path, kind in images.items()]


def _sample(path: Path, kind: str, pairs: Pairs) -> Sample:
    is_anomalous = meaning(kind) != "normal"
    return Sample(
        path=path,
        split="test",
        is_anomalous=is_anomalous,
        kind=kind if is_anomalous and kind.lower() not in _NO_KIND else None,
        **pairs.of(path),  # type: ignore[arg-type]
    )


def _images(place: Path) -> tuple[Listing, Pairs]:
    """List the images of one class, which the nested form keeps in ``img/`` beside ``label/``.

    Returns:
        The images, and the masks that belong to them.
    """
    listing = list_images(place)
    images, masks = divide(listing.images, place)
    pairs = pair_masks(
        ((p, _without_img(p.relative_to(place))) for p in images),
        ((mask, below_masks(mask, place)) for mask in masks),
    )
    return listing.without(masks), pairs


def _without_img(place: PurePath) -> PurePath:
    first, *rest = place.parts
    return PurePath(*rest) if rest and first == "img" else place


def _place(image: Path, test: Path) -> PurePath:
    """Return an image's path below ``test``, without the nested form's ``img``."""
    kind, *rest = image.relative_to(test).parts
    return PurePath(kind, _without_img(PurePath(*rest)))


def _apart(place: Path) -> Iterator[tuple[Listing, list[tuple[Path, PurePath]]]]:
    """Yield what folders of masks hold: the listing, and each mask with its path below it."""
    for name, folder in (folders_in(place) if place.is_dir() else {}).items():
        if is_mask_name(name):
            listing = list_images(folder)
            yield listing, [(mask, mask.relative_to(folder)) for mask in listing.images]
