"""A plain folder of images, or one image; nothing is said of which are normal.

`fit` takes all of them as normal, for that is what it is told by being given the folder; `score`
scores them as new images. Masks among them are left aside; where there are some, it is not known
which images are normal, and the folder is not trained on until that is said. So it is where a few
folders have names of words, which may be classes in any language, and where files are named like
others and a word more, as overlays and altered copies are.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path

from normalis.datasets.base import Dataset, Options, Sample
from normalis.datasets.layouts import classes
from normalis.datasets.listing import Listing, list_images, quote_some, stem_of
from normalis.datasets.pairing import divide
from normalis.datasets.words import (
    is_class_name,
    is_mask_name,
    names_a_part,
    says_normal,
    speaks_of_a_finding,
)
from normalis.errors import DataError
from normalis.errors.words import counted, verb

__all__ = ["LAYOUT", "read", "recognise"]

LAYOUT = "folder of images"

_FEW = 12  # folders that may be classes; more of them are patients


def recognise(path: Path, options: Options | None = None) -> bool:
    """Whether the path is a folder, or a file of no other layout; the last layout to be asked."""
    return path.exists()


def read(path: Path, options: Options | None = None) -> Dataset:
    """List a folder recursively; nothing is known of any image.

    Args:
        path: a folder, or one image file.
        options: whether the user said that all images are normal, which answers doubts.

    Raises:
        DataError: if there is no file that may be an image.
    """
    if not path.is_dir():
        return _dataset(path, (path,))
    listing = list_images(path)
    images, masks = divide(listing.images, path)
    if not images:
        notes = listing.notes()
        raise DataError(f"{path}: no image found in this folder or below it. {' '.join(notes)}")
    patients = classes.numbered_patients(listing, path)
    about = _of_patients(patients) if patients else _of_folders(images, path)
    notes = (*listing.notes(), *about, *_of_names(images))
    doubt = _of_words(images, path) or _of_derived(images)
    if doubt and not (options and "*" in options.normal_class):
        return _dataset(path, images, (*notes, *_of_masks(masks)), doubt)
    if marks := _annotations(listing, path):
        files, do = counted(len(marks), "file"), verb(len(marks), "annotates", "annotate")
        said = f"{files} {do} its images ({quote_some(_masks_named(marks))})"
        return _dataset(path, images, notes, _which(said))
    if not masks:
        return _dataset(path, images, notes)
    said = f"{len(masks)} of its files are masks by their names ({quote_some(_masks_named(masks))})"
    return _dataset(path, images, (*notes, *_of_masks(masks)), _which(said))


def _of_masks(masks: tuple[Path, ...]) -> tuple[str, ...]:
    return (f"Left aside {counted(len(masks), 'mask')}.",) if masks else ()


def _masks_named(masks: tuple[Path, ...]) -> list[str]:
    """Return the names of masks, with their folder."""
    return [f"{mask.parent.name}/{mask.name}" for mask in masks]


def _annotations(listing: Listing, root: Path) -> tuple[Path, ...]:
    """Return the files named like images that annotate them with boxes or outlines.

    They lie in a folder of annotations, or beside their images, where their text says so.
    """
    stems = {stem_of(image) for image in listing.images}
    named = [file for file in listing.others if file.stem in stems]
    inside = [f for f in named if any(map(is_mask_name, f.relative_to(root).parts[:-1]))]
    return tuple(inside) or tuple(filter(_outlines_something, named[:_LOOKED_AT]))


_LOOKED_AT, _READ = 200, 1 << 16  # files, and bytes of each
_OUTLINES = re.compile(rb'"(shapes|annotations|bbox|boxes|polygons?|segmentation)"\s*:|<object>')


def _outlines_something(file: Path) -> bool:
    """Whether a text holds outlines, as LabelMe's, COCO's and Pascal VOC's do."""
    try:
        with file.open("rb") as stream:
            return _OUTLINES.search(stream.read(_READ)) is not None
    except OSError:
        return False


def _which(said: str) -> str:
    return (
        f"{said}, so some images may show a lesion, and nothing says which are normal. Give a "
        "manifest with the columns path, label and mask, or a folder of normal images without "
        "masks"
    )


def _branch(images: tuple[Path, ...], root: Path) -> tuple[tuple[str, ...], Counter[str | None]]:
    """Return the folders that all images lie in, and those in which they part.

    Returns:
        The parts of the common path, and the number of images in each folder below it; None
        stands for images that lie beside these folders.
    """
    places = [p.relative_to(root).parts[:-1] for p in images]
    common: list[str] = []
    while True:
        depth = len(common)
        found = Counter(place[depth] if len(place) > depth else None for place in places)
        only = next(iter(found))
        if len(found) > 1 or only is None:
            return tuple(common), found
        common.append(only)


def _of_words(images: tuple[Path, ...], root: Path) -> str:
    """Say that a few folders have names of words that may be those of classes."""
    _, counts = _branch(images, root)
    folders = [name for name in counts if name is not None]
    words = [name for name in folders if not any(c.isdigit() for c in name)]
    if len(counts) < 2 or not 0 < len(words) <= _FEW or all(map(names_a_part, words)):
        return ""
    names = (f"{name} ({counts[name]} images)" for name in words)
    beside = f"; {counts[None]} images lie beside them" if counts[None] else ""
    return (
        f"it is not known what the names of its folders mean: {quote_some(names, limit=8)}{beside}."
        " If all of these images are normal (of several sites, say, or a folder per patient), say "
        "--normal-class '*' (in Python open_dataset(..., normal_class='*')); if the folders are "
        "classes, name the normal one: --normal-class NAME; else give the folder of normal images "
        "alone"
    )


def _of_derived(images: tuple[Path, ...]) -> str:
    """Say that files are named like others with one word more: overlays, masks, altered copies."""
    stems = {(p.parent, stem_of(p)) for p in images}
    ends: dict[str, list[Path]] = defaultdict(list)
    for path in images:
        named = _ONE_WORD_MORE.fullmatch(stem_of(path))
        if named and (path.parent, named[1]) in stems and not names_a_part(named[2]):
            ends[named[2]].append(path)
    end, files = max(ends.items(), key=lambda item: len(item[1]), default=("", []))
    if len(files) < _ENOUGH:
        return ""
    return (
        f"{len(files)} files are named like others with {end!r} more "
        f"({quote_some(p.name for p in files)}): masks, overlays or altered copies are no normal "
        "images. Move them away; or, if they are normal images of their own, say --normal-class "
        "'*' (in Python open_dataset(..., normal_class='*'))"
    )


_ONE_WORD_MORE = re.compile(r"(.+?)[_\-. ]([^\W\d_]{2,})")
_ENOUGH = 2  # files that are named like others, before it is no accident


def _of_patients(folders: list[str]) -> list[str]:
    named = quote_some(folders, limit=6)
    return [f"The folders {named} are patients by their DICOM headers, not classes."]


def _of_folders(images: tuple[Path, ...], root: Path) -> list[str]:
    """Say if images lie in folders that may be those of patients, or of classes."""
    notes = []
    common, counts = _branch(images, root)
    names = [name for name in counts if name is not None]
    wordy = [name for name in names if not any(c.isdigit() for c in name)]
    if 2 <= len(wordy) == len(names) <= _FEW and all(map(names_a_part, names)):
        notes.append(
            f"The images of all folders ({quote_some(names, limit=8)}) count alike; if these are "
            "classes, say which is normal with --normal-class."
        )
    elif (
        not wordy
        and len(names) > 1
        and None not in counts
        and len(images) > len(names)
        and not all(p.suffix.lower() == ".dcm" for p in images)  # headers tell of patients
    ):
        below = "".join(f"{re.escape(part)}/" for part in common)
        notes.append(
            f"The images lie in {len(names)} numbered folders ({quote_some(names)}), which count "
            "alike. If each is a patient of whom no header tells, say --patient-pattern "
            f"'^{below}([^/]+)/'; if they are classes, say which is normal with --normal-class."
        )
    own = root.resolve().name
    if is_class_name(own) and not says_normal(own):
        notes.append(f"The folder itself is named {own}: are its images normal?")
    return notes


def _of_names(images: tuple[Path, ...]) -> list[str]:
    """Say if names of files are those of anomalies, as where labels stand in the names."""
    found = [path.name for path in images if speaks_of_a_finding(stem_of(path))]
    if not found:
        return []
    return [
        f"The names of {len(found)} of {counted(len(images), 'image')} speak of a finding "
        f"({quote_some(found)}): are these images normal? A manifest says which are."
    ]


def _dataset(
    path: Path, images: tuple[Path, ...], notes: tuple[str, ...] = (), unclear: str = ""
) -> Dataset:
    samples = tuple(Sample(path=p, split="unlabelled") for p in images)
    name = path.stem if path.stem else path.resolve().name
    return Dataset(
        name=name, root=path, layout=LAYOUT, samples=samples, notes=notes, unclear=unclear
    )
