"""What lies in a folder of images and is none: refused, or left aside with its reason.

A table or list that names the images may say which of them are normal; if it is not understood,
that is an error. So are the structures of archives that keep masks and derived images beside the
images (BIDS, Medical Segmentation Decathlon and nnU-Net, MOOD). DICOM objects that are results
(segmentations, reports, screenshots) are left aside.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from pathlib import Path

from normalis.datasets.base import Dataset
from normalis.datasets.columns import names_a_path
from normalis.datasets.listing import (
    NOT_IMAGES,
    STORES,
    TABLES,
    Listing,
    folders_in,
    is_file,
    quote_some,
    stem_of,
    suffix_of,
)
from normalis.datasets.tables import read_table
from normalis.errors import DataError, LayoutError
from normalis.errors.words import counted

__all__ = ["refuse_structures", "refuse_tables", "without_objects"]

_TABLES = (".csv", ".tsv", ".psv", ".parquet")
_SHEETS = (".xls", ".xlsx", ".xlsm", ".xlsb", ".ods", ".numbers")
_MOST = 1 << 20  # bytes of a list that are looked through for names of images
_LEAST = 3  # letters of a name without suffix, to be told from a number in a text
_SHARE = 0.2  # of the words of a list that are names of images without suffix
_WORDS = re.compile(rb"[\s,;|\"':{}\[\]()<>=]+")
_LOOKED_AT = 200  # files of no known suffix that are looked into
_NO_DICOM = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".nii", ".gz", ".bmp", ".gif", ".webp")


def refuse_structures(path: Path) -> None:
    """Refuse archives whose masks or derived images a plain listing would take as images.

    Raises:
        LayoutError: saying what to give instead.
    """
    if what := _structure(path, list(folders_in(path))):
        raise LayoutError(
            f"{path}: looks like {what}, which is not read as a whole: it does not say which "
            "images are normal, and holds masks or derived images beside them. Give the folder of "
            "normal images, or a manifest with the columns path, label, split, patient_id and mask"
        )


def _structure(path: Path, folders: list[str]) -> str:
    if is_file(path / "dataset_description.json") or "derivatives" in folders:
        return "a BIDS data set (dataset_description.json, derivatives)"
    lower = {name.lower() for name in folders}
    if {"imagestr", "labelstr"} <= lower or {"imagests", "labelsts"} <= lower:
        return "a data set of the Medical Segmentation Decathlon or nnU-Net (imagesTr, labelsTr)"
    for name in lower:
        first, _, last = name.rpartition("_")
        if last in ("label", "labels") and first in lower:
            return f"a data set of the MOOD challenge ({first}, {name})"
    return ""


def refuse_tables(path: Path, listing: Listing) -> None:
    """Refuse a folder with a table or list that may describe its images and is not understood.

    Raises:
        LayoutError: naming the file, why it is not understood, and what to do.
    """
    stems = {stem_of(image) for image in listing.images}
    texts = _texts(path, listing)
    for file in (*listing.others, *texts):
        is_list = file in texts or suffix_of(file.name) in _TABLES
        is_sidecar = file.stem in stems and not is_list
        why = None if is_sidecar else _why_unread(file, path, listing)
        if why:
            raise LayoutError(
                f"{path}: holds {file.relative_to(path)}, which may say which images are normal "
                f"and is not understood: {why}. Make it a manifest with the columns path, label "
                "and split; or, if it says nothing of that, add --ignore-tables "
                "(in Python open_dataset(..., ignore_tables=True)) or give the folder of images"
            )


def _texts(root: Path, listing: Listing) -> list[Path]:
    """Return files of the folder itself that are listed as images and hold text: lists, perhaps."""
    odd = [p for p in listing.images if p.parent == root and suffix_of(p.name) not in _NO_DICOM]
    return [p for p in odd[:_LOOKED_AT] if _is_text(p)]


def _is_text(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            head = stream.read(512)
    except OSError:
        return False
    return bool(head) and not any(byte < 32 and byte not in b"\t\r\n\f" for byte in head)


def _why_unread(file: Path, root: Path, listing: Listing) -> str | None:
    suffix = suffix_of(file.name)
    at_top = file.parent == root
    if suffix not in _TABLES:
        return _why_no_table(file, suffix, listing) if at_top else None
    try:
        table = read_table(file, is_head=names_a_path)
    except DataError as error:
        said = str(error)
        return said.removeprefix(f"{file}: ").removeprefix(f"{file}, ") if at_top else None
    if not at_top:
        is_manifest = names_a_path(table.names) and _names_images(file, listing)
        return "it lies in a sub-folder; give it itself as the data set" if is_manifest else None
    listed = quote_some(filter(None, table.names), limit=8) or "nothing"
    if not names_a_path(table.names):
        return f"it has no column path (line {table.line} names {listed})"
    return f"its column of paths names no file that is there (columns: {listed})"


def _why_no_table(file: Path, suffix: str, listing: Listing) -> str | None:
    if suffix in _SHEETS:
        return "spreadsheets are not read; save it as CSV"
    if suffix in STORES:
        return "tables of other programs are not read; save it as CSV"
    if suffix in NOT_IMAGES and suffix not in TABLES and not _is_text(file):
        return f"a {suffix} is not read for labels; unpack it, or save it as CSV"
    return _names_images(file, listing)


def _names_images(file: Path, listing: Listing) -> str | None:
    """Say so if a text names images of the folder, as a list of labels or of a split does."""
    try:
        with file.open("rb") as stream:
            text = stream.read(_MOST)
    except OSError:
        return None
    names = {image.name.encode("utf-8", "surrogateescape") for image in listing.images} - {
        file.name.encode("utf-8", "surrogateescape")
    }
    found = sum(name in text for name in list(names)[:200])
    if (found < min(2, len(names)) or not names) and not _names_stems(text, listing):
        return None
    return "it names images of this folder, and is no table with a column path"


def _names_stems(text: bytes, listing: Listing) -> bool:
    """Whether much of a text is names of images without their suffix, as in lists of a split."""
    stems = {stem_of(image).encode("utf-8", "surrogateescape") for image in listing.images}
    words = [word for word in _WORDS.split(text) if word]
    named = [word for word in words if len(word) >= _LEAST and word in stems]
    return len(set(named)) > 1 and len(named) >= _SHARE * len(words)


def without_objects(data: Dataset) -> Dataset:
    """Leave aside the DICOM files that are results, not acquired images.

    A folder of secondary captures alone is what the user means: some public collections of films
    are stored so. Files that a manifest lists, or that are given themselves, are taken as told.
    """
    from normalis.datasets.objects import CAPTURE, object_kind

    kinds: dict[str, list[Path]] = defaultdict(list)
    images = 0
    for path in dict.fromkeys(s.path for s in data.samples):
        if suffix_of(path.name) in _NO_DICOM or path.name.lower().endswith(".nii.gz"):
            images += 1
        elif kind := object_kind(path):
            kinds[kind].append(path)
        else:
            images += 1
    notes = []
    if CAPTURE in kinds and not images:
        count = len(kinds.pop(CAPTURE))
        notes.append(f"All {count} images are DICOM secondary captures, and are taken as images.")
    notes += [_note(kind, paths) for kind, paths in sorted(kinds.items())]
    aside = {path for paths in kinds.values() for path in paths}
    samples = tuple(s for s in data.samples if s.path not in aside)
    if not samples:
        raise DataError(f"{data.root}: holds no image. {' '.join(notes)}")
    return dataclasses.replace(data, samples=samples, notes=(*data.notes, *notes))


def _note(kind: str, paths: list[Path]) -> str:
    how = "; list them in a manifest to use them" if "capture" in kind else ""
    return (
        f"Left aside as no acquired images ({kind}) {counted(len(paths), 'DICOM file')}: "
        f"{quote_some(path.name for path in paths)}{how}."
    )
