"""One folder per class, as classifiers want it: ``NORMAL/``, ``PNEUMONIA/``; ``no/``, ``yes/``.

::

    NORMAL/, PNEUMONIA/                         or 0/ and 1/, good/ and defect/, CNV/, DME/, NORMAL/
    train/NORMAL/, train/PNEUMONIA/, test/...   the same by split, at any depth

Which class is normal is never guessed: ``--normal-class NORMAL`` says it. Then the images of that
class are normal and all others anomalous, each of the kind of its folder. Without splits the
normal ones are for training and the others for the test, unless the folder itself is named as a
test split is; `evaluate` takes all of them. Until it is said, the images can be looked at and
scored, and not be trained on.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from normalis.datasets.base import Dataset, Options, Sample, Split
from normalis.datasets.dicom_patients import are_patients
from normalis.datasets.listing import Listing, list_images, quote_some
from normalis.datasets.pairing import Pairs, below_masks, divide, pair_masks
from normalis.datasets.words import is_class_name, is_mask_name, meaning, split_of
from normalis.errors import DataError
from normalis.errors.words import counted

__all__ = ["LAYOUT", "classes_in", "numbered_patients", "read", "recognise"]

LAYOUT = "one folder per class"

_FEW = 6  # numbers from 0 that count as classes; more of them are patients or cases


def recognise(path: Path, options: Options | None = None) -> bool:
    """Whether folders below this one are named as classes are, or the user named one of them."""
    if not path.is_dir():
        return False
    listing = list_images(path)
    return bool(_said_in(listing, path, options or Options()) or classes_in(listing, path))


def classes_in(listing: Listing, root: Path) -> list[str]:
    """Return the names of folders that are classes by their names; empty if there are none.

    One folder of a word for normal says nothing that would have to be asked for; neither do
    numbers, unless they are those of a few classes: 0 and 1, 0 to 4, and their DICOM headers do
    not say that they are patients.
    """
    names = _folders(listing, root)
    is_numbered = bool(_numbered(names)) and not numbered_patients(listing, root)
    chosen = [n for n in names if is_class_name(n) or (is_numbered and n.isdecimal())]
    only_normal = all(meaning(name) == "normal" for name in chosen)
    alone = all(any(map(chosen.__contains__, _parts(p, root))) for p in listing.images)
    if not chosen or (only_normal and alone and not is_numbered):
        return []
    return _beside(listing, root, chosen)


def _numbered(names: Iterable[str]) -> list[str]:
    """Return the names that are the numbers of a few classes; empty if they are others."""
    found = sorted(name for name in names if name.isdecimal() and len(name) == 1)
    is_row = [int(name) for name in found] == list(range(len(found)))
    return found if 1 < len(found) < _FEW and is_row else []


def numbered_patients(listing: Listing, root: Path) -> list[str]:
    """Return the numbered folders that are patients by their DICOM headers, see `are_patients`."""
    found = _numbered(_folders(listing, root))
    files = {n: [p for p in listing.images if n in _parts(p, root)] for n in found}
    return found if found and are_patients(files) else []


def read(path: Path, options: Options | None = None) -> Dataset:
    """List the images by class.

    Raises:
        DataError: if no folder has the name of the class that was said to be normal.
    """
    chosen = options or Options()
    listing = list_images(path)
    images, masks = divide(listing.images, path)
    if not images:
        raise DataError(f"{path}: no image found in this folder or below it")
    if chosen.says():
        return _labelled(path, listing, images, masks, chosen)
    notes = (*listing.notes(), *_mask_notes(masks))
    samples = [Sample(path=p, split=_unlabelled_split(p, path)) for p in images]
    return _dataset(path, samples, notes, unclear=_unclear(listing, path))


def _unclear(listing: Listing, root: Path) -> str:
    """Say which classes there are and how to name the normal one."""
    names = classes_in(listing, root)
    counts = Counter(name for p in listing.images for name in _parts(p, root) if name in names)
    likely = next(iter(sorted(filter(_likely_normal, names), key=_is_no_word)), "NAME")
    listed = quote_some((f"{name} ({counted(counts[name], 'image')})" for name in names), limit=8)
    return (
        f"its folders are named like classes: {listed}. Say which is normal with --normal-class "
        f"{_quoted(likely)} (in Python open_dataset(..., normal_class={likely!r})), all of them "
        "with --normal-class '*', or give the folder of normal images alone"
    )


def _is_no_word(name: str) -> bool:
    return meaning(name) != "normal"


def _likely_normal(name: str) -> bool:
    """Whether a class may be the normal one: by its name, or by a word of it (``NORMAL-1``)."""
    words = [word for word in re.split(r"[\W\d_]+", name) if len(word) > len("no")]
    return meaning(name) == "normal" or any(meaning(word) == "normal" for word in words)


def _quoted(name: str) -> str:
    return name if name.isalnum() else f"'{name}'"


def _parts(image: Path, root: Path) -> tuple[str, ...]:
    return image.relative_to(root).parts[:-1]


def _folders(listing: Listing, root: Path) -> list[str]:
    """Return the names of all folders that hold images, but for splits and masks."""
    names = dict.fromkeys(part for p in listing.images for part in _parts(p, root))
    return [n for n in names if not is_mask_name(n) and split_of(n) is None]


def _said_in(listing: Listing, root: Path, options: Options) -> list[str]:
    if "*" in options.normal_class:
        return _folders(listing, root)
    return [name for name in _folders(listing, root) if options.is_normal(name)]


def _beside(listing: Listing, root: Path, chosen: list[str]) -> list[str]:
    """Return all folders at the depth where most of the chosen ones lie: the classes."""
    depth = _depth(listing, root, chosen)
    return list(
        dict.fromkeys(
            parts[depth]
            for p in listing.images
            if len(parts := _without_splits(p, root)) > depth and not is_mask_name(parts[depth])
        )
    )


def _without_splits(image: Path, root: Path) -> tuple[str, ...]:
    return tuple(part for part in _parts(image, root) if split_of(part) is None)


def _depth(listing: Listing, root: Path, chosen: list[str]) -> int:
    depths = Counter(
        at
        for p in listing.images
        for at, part in enumerate(_without_splits(p, root))
        if part in chosen
    )
    return depths.most_common(1)[0][0]


def _split_in(image: Path, root: Path) -> Split | None:
    """Return the split that an image's folders name; ``test`` if the root alone is named so."""
    said: Split | None = next(filter(None, map(split_of, _parts(image, root))), None)
    if said is None and split_of(root.resolve().name) == "test":
        return "test"
    return said


def _unlabelled_split(image: Path, root: Path) -> Split:
    return "test" if _split_in(image, root) == "test" else "unlabelled"


def _labelled(
    root: Path,
    listing: Listing,
    images: tuple[Path, ...],
    masks: tuple[Path, ...],
    options: Options,
) -> Dataset:
    normal = _said_in(listing, root, options)
    if not normal:
        raise DataError(
            f"{root}: no folder is named {' or '.join(options.normal_class)}, which was said to be "
            f"normal; folders are {quote_some(_folders(listing, root), limit=8)}"
        )
    depth = _depth(listing, root, normal)
    pairs = pair_masks(
        ((p, p.relative_to(root)) for p in images), ((m, below_masks(m, root)) for m in masks)
    )
    samples, aside = [], Counter[str]()
    for path in images:
        sample = _sample(path, root, normal, depth, pairs, all_normal="*" in options.normal_class)
        if sample.is_anomalous and sample.split in ("train", "validation"):
            aside[f"{sample.split}/{sample.kind}"] += 1
        else:
            samples.append(sample)
    anomalous = [s.path for s in samples if s.is_anomalous]
    notes = [*listing.notes(), *pairs.notes(anomalous, any_masks=bool(masks))]
    if aside:
        said = ", ".join(f"{count} of {name}" for name, count in sorted(aside.items()))
        notes.append(f"Left aside images that are not normal, as training must be: {said}.")
    kinds = {s.kind for s in samples if s.is_anomalous and s.kind}
    if doubted := sorted(kind for kind in kinds if meaning(kind) == "normal"):
        notes.append(
            f"{quote_some(doubted)} counts as anomalous, for another class was said to be normal; "
            f"if it is normal as well, add --normal-class {_quoted(doubted[0])}."
        )
    if unknown := sum(s.split == "unlabelled" for s in samples):
        outside = counted(unknown, "image")
        notes.append(f"Nothing is known of what lies in no folder of a class: {outside}.")
    divided = not any(_split_in(path, root) for path in images)
    return replace(_dataset(root, samples, notes), is_divided=divided)


def _sample(
    path: Path, root: Path, normal: list[str], depth: int, pairs: Pairs, *, all_normal: bool
) -> Sample:
    parts, found = _without_splits(path, root), pairs.of(path)
    if all_normal or any(part in normal for part in parts):
        split = _split_in(path, root) or "train"
        return Sample(path=path, split=split, is_anomalous=False, **found)  # type: ignore[arg-type]
    if len(parts) <= depth:
        return Sample(path=path, split="unlabelled")
    split = _split_in(path, root) or "test"
    return Sample(path=path, split=split, is_anomalous=True, kind=parts[depth], **found)  # type: ignore[arg-type]


def _mask_notes(masks: tuple[Path, ...]) -> tuple[str, ...]:
    if not masks:
        return ()
    return (
        f"Left aside as masks by their names: {counted(len(masks), 'file')}, "
        f"such as {masks[0].name}.",
    )


def _dataset(root: Path, samples: list[Sample], notes: object, unclear: str = "") -> Dataset:
    return Dataset(
        name=root.resolve().name,
        root=root,
        layout=LAYOUT,
        samples=tuple(samples),
        notes=tuple(notes),  # type: ignore[arg-type]
        unclear=unclear,
    )
