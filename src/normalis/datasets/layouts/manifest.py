"""A CSV, TSV or Parquet manifest: one row per file.

::

    path,label,mask,patient_id,split,age
    a/001.dcm,normal,,P1,train,61
    a/002.dcm,anomalous,masks/002.png,P2,test,58

The column of paths alone is required. Encodings, delimiters and the names that columns may have
are those of `normalis.datasets.tables` and `normalis.datasets.columns`; what words a label may be,
those of `normalis.datasets.words`. Any other label is the name of a class, and which class is
normal has to be said (``--normal-class``). Where ``split`` is empty, anomalous rows go to test,
normal ones to train, and rows of which nothing is known to neither. Further columns become the
sample's header.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normalis.datasets.base import Dataset, Options, Sample, Split
from normalis.datasets.columns import Columns, names_a_path, roles_of
from normalis.datasets.listing import (
    IMAGES,
    is_file,
    list_images,
    natural_key,
    quote_some,
    suffix_of,
)
from normalis.datasets.pairing import divide
from normalis.datasets.tables import SUFFIXES, Table, cell_text, read_table
from normalis.datasets.words import is_mask_name, meaning, split_of
from normalis.errors import DataError, LayoutError
from normalis.errors.words import counted, verb

__all__ = ["LAYOUT", "manifests_in", "read", "recognise"]

LAYOUT = "manifest"

_OLD = ("Windows-1252", "Latin-1")  # what a table that is no UTF-8 is read as
_OURS = {"anomaly_score", "p_value"}
_IN_FOLDERS = (".csv", ".tsv", ".psv", ".parquet")

Row = dict[str, Any]


def recognise(path: Path, options: Options | None = None) -> bool:
    """Whether the path is a table, or a folder with a table that has a column of paths."""
    if path.is_file():
        return path.suffix.lower() in SUFFIXES
    return not (options and options.ignore_tables) and bool(manifests_in(path))


def read(path: Path, options: Options | None = None) -> Dataset:
    """List the rows of a manifest, in its order.

    Args:
        path: the manifest, or the folder that holds it.
        options: which classes are normal.

    Raises:
        LayoutError: if a folder holds several manifests.
        DataError: if a value is unknown, a path comes twice, an anomalous row is in train or
            validation, or no file exists; the message names the line.
    """
    files = [path] if path.is_file() else manifests_in(path)
    if len(files) > 1:
        names = ", ".join(f.name for f in files)
        raise LayoutError(f"{path}: must hold one manifest, found {names}; give one of them")
    file = files[0]
    table = read_table(file, is_head=names_a_path)
    if set(table.names) >= _OURS:
        raise LayoutError(
            f"{file}: is a table of scores that normalis wrote, and no data set; give the images"
        )
    finder = _Finder(file.parent)
    chosen = options or Options()
    all_normal = "*" in chosen.normal_class

    def exists(text: str) -> bool:
        try:
            return finder.find(text) is not None
        except DataError as error:
            raise DataError(f"{file}: {error}") from error

    columns = roles_of(table, exists=exists, all_normal=all_normal)
    reading = _Reading(table, columns, chosen, finder)
    samples = reading.samples()
    if not samples:
        raise DataError(
            f"{file}: none of the {len(reading.missing)} files that it lists exists"
            f" (first: {quote_some(reading.missing)}); paths are relative to the manifest"
        )
    unlabelled = columns.label is not None and all(s.is_anomalous is None for s in samples)
    return Dataset(
        unclear=_no_label(columns) if unlabelled else "",
        name=file.stem if path.is_file() else path.resolve().name,
        root=path,
        layout=LAYOUT,
        samples=tuple(samples),
        notes=(
            *reading.notes(samples, aside=_others(path, file) if path.is_dir() else []),
            *(_unlisted(path, samples) if path.is_dir() else ()),
        ),
        is_divided=not reading.names_splits(),
    )


def _unlisted(folder: Path, samples: list[Sample]) -> list[str]:
    """Say which images of the folder the table does not list."""
    known = {s.path for s in samples} | {m for s in samples for m in (s.mask, *s.more_masks) if m}
    images, _ = divide(list_images(folder).images, folder)
    left = [p for p in images if p not in known and suffix_of(p.name) in IMAGES]
    if not left:
        return []
    return [
        f"{len(left)} images of the folder have no row, and are left out: "
        f"{quote_some(p.name for p in left)}."
    ]


def _no_label(columns: Columns) -> str:
    return (
        f"no row of the column {columns.label} has a label, so it is not known which images are "
        "normal; fill it, or leave the column out if all are"
    )


def manifests_in(folder: Path) -> list[Path]:
    """Return the tables of a folder that list its files; those with a column ``path`` win."""
    found: dict[bool, list[Path]] = {True: [], False: []}
    for file in _tables_in(folder):
        try:
            table = read_table(file, is_head=names_a_path)
        except DataError:
            continue
        if "path" in [name.strip().casefold() for name in table.names]:
            found[True].append(file)
        elif names_a_path(table.names) and _lists_files(table, folder):
            found[False].append(file)
    return found[True] or found[False]


def _lists_files(table: Table, folder: Path) -> bool:
    finder = _Finder(folder)
    try:
        columns = roles_of(table, exists=lambda text: finder.find(text) is not None)
        return any(finder.find(cell_text(row[columns.path])) for _, row in table.rows)
    except DataError:  # of two files of one name, or a column named twice: said when it is read
        return True


def _tables_in(folder: Path) -> list[Path]:
    files = [f for f in folder.iterdir() if f.suffix.lower() in _IN_FOLDERS and is_file(f)]
    return sorted((f for f in files if f.name[0] != "."), key=lambda f: natural_key(f.name))


def _others(folder: Path, manifest: Path) -> list[str]:
    return [file.name for file in _tables_in(folder) if file != manifest]


class _Finder:
    """Files that cells of a table mean: by their path, or where that fails by a unique name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._by_name: dict[str, list[Path]] | None = None

    def find(self, text: str, *, is_mask: bool = False) -> Path | None:
        """Return the file that a cell names, None if there is none.

        Raises:
            DataError: if several files fit.
        """
        if not text:
            return None
        slashed = text.replace("\\", "/")
        for name in dict.fromkeys((text, slashed, *_spellings(slashed))):
            for place in (self.folder, self.folder / "images"):
                if is_file(place / name):
                    return place / name
        return self._elsewhere(slashed, is_mask=is_mask)

    def _elsewhere(self, text: str, *, is_mask: bool) -> Path | None:
        if self._by_name is None:
            self._by_name = defaultdict(list)
            for file in list_images(self.folder).images:
                for name in {file.name, file.name.split(".")[0], file.stem}:
                    self._by_name[name].append(file)
        tail = tuple(part for part in text.split("/") if part not in (".", ""))
        if not tail:
            return None
        fitting = [
            file
            for file in self._by_name.get(tail[-1], [])
            if file.relative_to(self.folder).parts[-len(tail) : -1] == tail[:-1]
        ]
        if len(fitting) > 1:
            named = [f for f in fitting if _is_of_masks(f, self.folder) == is_mask]
            fitting = named if len(named) == 1 else fitting
        if len(fitting) > 1:
            raise DataError(
                f"{text} may be {quote_some(f.relative_to(self.folder) for f in fitting)}; "
                "give the path"
            )
        return fitting[0] if fitting else None


def _is_of_masks(file: Path, root: Path) -> bool:
    return any(is_mask_name(part) for part in (*file.relative_to(root).parts[:-1], file.stem))


def _spellings(text: str) -> Iterable[str]:
    return (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))


@dataclass
class _Reading:
    """Rows on their way to samples, and what is to be said of them."""

    table: Table
    columns: Columns
    options: Options
    finder: _Finder
    missing: list[str] = field(default_factory=list)
    no_masks: list[str] = field(default_factory=list)
    aside: list[str] = field(default_factory=list)

    def samples(self) -> list[Sample]:
        self._check_labels()
        samples: list[Sample] = []
        lines: dict[Path, tuple[int, bool | None]] = {}
        for line, row in self.table.rows:
            where = f"{self.table.file}, line {line}"
            sample = self._sample(row, where)
            if sample is None:
                continue
            self._check_once(sample, row, line, lines)
            samples.append(sample)
        return samples

    def _sample(self, row: Row, where: str) -> Sample | None:
        """Return the sample of a row; None if its file is missing or not to be used."""
        text = cell_text(row[self.columns.path])
        if not text:
            raise DataError(f"{where}: path must not be empty")
        try:
            path = self.finder.find(text)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        label = self._label(row, where)
        split = self._split(row, label, where, text)
        if path is None:
            self.missing.append(text)
            return None
        if label and split in ("train", "validation"):
            self.aside.append(text)
            return None
        return Sample(
            path=path,
            split=split,
            is_anomalous=label,
            patient_id=self._cell(row, self.columns.patient) or None,
            mask=self._mask(row),
            kind=self._kind(row) if label else None,
            header=self._header(row),
        )

    def _header(self, row: Row) -> dict[str, Any]:
        """Return what the further columns say, and by one name which exam an image is of."""
        further = {
            name.strip().lower(): value
            for name, value in row.items()
            if name.strip() and name not in self.columns.known
        }
        exams = {key: self._cell(row, name) for key, name in self.columns.exams.items()}
        return further | {key: value for key, value in exams.items() if value}

    def _cell(self, row: Row, column: str | None) -> str:
        return cell_text(row.get(column)) if column else ""

    def _label(self, row: Row, where: str) -> bool | None:
        text = self._cell(row, self.columns.label)
        if self.options.says() and text and meaning(text) != "unknown":
            return not self.options.is_normal(text)
        said = meaning(text)
        if said is None:
            raise DataError(
                f"{where}: label must be one of 0, 1, normal, anomalous or empty, got {text!r}; "
                f"{self._classes()}{self._encoding(text)}"
            )
        if said == "unknown":
            return None
        return (said == "anomalous") != self.columns.inverted

    def _classes(self) -> str:
        column = self.columns.label or ""
        counts = Counter(self._cell(row, column) for _, row in self.table.rows)
        listed = quote_some(
            (f"{n} ({counted(c, 'row')})" for n, c in counts.most_common() if n), limit=6
        )
        likely = next((n for n in counts if meaning(n) == "normal"), "NAME")
        return (
            f"the column {column} holds the classes {listed}: say which is normal with "
            f"--normal-class {likely!r}"
        )

    def _encoding(self, text: str) -> str:
        if text.isascii() or self.table.encoding not in _OLD:
            return ""
        return (
            f". The table is no UTF-8 and was read as {self.table.encoding}; if it is in another "
            "encoding, save it as UTF-8"
        )

    def _check_labels(self) -> None:
        """Refuse a normal class that no row has."""
        if not self.options.says() or "*" in self.options.normal_class:
            return
        rows = self.table.rows
        if self.columns.label is None or not any(
            self.options.is_normal(self._cell(row, self.columns.label)) for _, row in rows
        ):
            said = self._classes() if self.columns.label else "it has no column of labels"
            raise DataError(
                f"{self.table.file}: no row has the label "
                f"{' or '.join(self.options.normal_class)}, which was said to be normal; {said}"
            )

    def _split(self, row: Row, label: bool | None, where: str, text: str) -> Split:
        said = self._cell(row, self.columns.split)
        named = split_of(said)
        if said and named is None and meaning(said) != "unknown":
            raise DataError(
                f"{where}: split must be one of train, validation, test or empty, got {said!r}"
            )
        if label and named in ("train", "validation") and not self.options.says():
            raise DataError(
                f"{where}: {named} must hold normal images only, but {text} is labelled"
                " anomalous; move it to test"
            )
        if named in ("train", "validation") and label is None and self.columns.label:
            return "unlabelled"
        if named:
            return named
        return {True: "test", False: "train", None: "unlabelled"}[label]  # type: ignore[return-value]

    def names_splits(self) -> bool:
        """Whether any row says which split it is of."""
        return any(split_of(self._cell(row, self.columns.split)) for _, row in self.table.rows)

    def _kind(self, row: Row) -> str | None:
        """Return the anomaly's name: of a column for it, or a label that is a class."""
        said = self._cell(row, self.columns.kind)
        if not said and meaning(self._cell(row, self.columns.label)) is None:
            said = self._cell(row, self.columns.label)
        return said if said and meaning(said) is None else None

    def _mask(self, row: Row) -> Path | None:
        text = self._cell(row, self.columns.mask)
        if meaning(text) == "unknown":
            return None
        found = self.finder.find(text, is_mask=True)
        if found is None:
            self.no_masks.append(text)
        return found

    def _check_once(
        self, sample: Sample, row: Row, line: int, lines: dict[Path, tuple[int, bool | None]]
    ) -> None:
        if sample.path not in lines:
            lines[sample.path] = (line, sample.is_anomalous)
            return
        before, label = lines[sample.path]
        words = {True: "anomalous", False: "normal", None: "unlabelled"}
        contradicts = label != sample.is_anomalous
        how = f" as {words[label]}, here as {words[sample.is_anomalous]}" if contradicts else ""
        raise DataError(
            f"{self.table.file}, line {line}: {cell_text(row[self.columns.path])} is already listed"
            f" in line {before}{how}; a file may be listed once"
        )

    def notes(self, samples: list[Sample], *, aside: list[str]) -> tuple[str, ...]:
        """Say what is missing, unknown or not read."""
        notes = list(self.columns.notes)
        if self.table.encoding in _OLD:
            notes.append(
                f"{self.table.file.name} is no UTF-8 and was read as {self.table.encoding}."
            )
        for what, names in (("file", self.missing), ("mask", self.no_masks)):
            if names:
                notes.append(
                    f"{counted(len(names), what)} of the manifest "
                    f"{verb(len(names), 'is', 'are')} missing: {quote_some(names)}."
                )
        if self.aside:
            notes.append(
                f"Left aside {len(self.aside)} anomalous rows of train and validation, which hold "
                f"normal images only: {quote_some(self.aside)}."
            )
        taken = sum(s.split == "train" and s.is_anomalous is None for s in samples)
        if taken:
            notes.append(
                f"Taken as normal without a label: {counted(taken, 'training image')}"
                f"{self._unread()}."
            )
        notes += self._of_unlabelled(samples)
        if aside:
            notes.append(f"Tables that are not read: {quote_some(aside)}.")
        return tuple(notes)

    def _of_unlabelled(self, samples: list[Sample]) -> list[str]:
        count = sum(s.split == "unlabelled" for s in samples)
        if not count:
            return []
        if self.columns.label is None and self.columns.split is None:
            also = self._unread()
            return [f"The table has no column of labels, so nothing is known of its images{also}."]
        return [f"Without a label, left out by fit and evaluate: {counted(count, 'row')}."]

    def _unread(self) -> str:
        """Name the columns that were not read, where there is none of labels."""
        unread = [n for n in self.table.names if n.strip() and n not in self.columns.known]
        if self.columns.label or not unread:
            return ""
        return f"; other columns: {quote_some(unread, limit=6)}"
