"""A CSV, TSV or Parquet manifest: one row per file.

::

    path,label,mask,patient_id,split,age
    a/001.dcm,normal,,P1,train,61
    a/002.dcm,anomalous,masks/002.png,P2,test,58

``path`` alone is required, and is relative to the manifest. ``label`` is 0, 1, normal or
anomalous; empty means unlabelled. ``split`` is train, validation (val, valid) or test; where it is
empty, anomalous rows go to test and all others to train. Further columns become the sample's
header.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from normalis.datasets.base import Dataset, Sample, Split
from normalis.datasets.listing import natural_key, quote_some
from normalis.errors import DataError, LayoutError

__all__ = ["LAYOUT", "read", "recognise"]

LAYOUT = "manifest"

_SUFFIXES = (".csv", ".tsv", ".parquet")
_LABELS = {"0": False, "1": True, "normal": False, "anomalous": True, "": None}
_SPLITS: dict[str, Split | None] = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
    "": None,
}
_KNOWN = ("path", "label", "mask", "patient_id", "split")

Row = dict[str, Any]


def recognise(path: Path) -> bool:
    """Whether the path is a table, or a folder with a table that has a column ``path``."""
    if path.is_file():
        return path.suffix.lower() in _SUFFIXES
    return bool(_manifests_in(path))


def read(path: Path) -> Dataset:
    """List the rows of a manifest, in its order.

    Args:
        path: the manifest, or the folder that holds it.

    Raises:
        LayoutError: if a folder holds several manifests.
        DataError: if a value is unknown, a path comes twice, an anomalous row is in train or
            validation, or no file exists; the message names the line.
    """
    files = [path] if path.is_file() else _manifests_in(path)
    if len(files) > 1:
        names = ", ".join(f.name for f in files)
        raise LayoutError(f"{path}: must hold one manifest, found {names}; give one of them")
    file = files[0]
    samples: list[Sample] = []
    missing: list[str] = []
    masks: list[str] = []
    lines: dict[Path, int] = {}
    for line, row in _rows(file):
        sample = _sample(row, where=f"{file}, line {line}", folder=file.parent)
        if sample.path in lines:
            raise DataError(
                f"{file}, line {line}: {row['path']} is already listed in line"
                f" {lines[sample.path]}; a file may be listed once"
            )
        lines[sample.path] = line
        if not sample.path.is_file():
            missing.append(str(row["path"]))
            continue
        if sample.mask is None and _text(row.get("mask")):
            masks.append(_text(row["mask"]))
        samples.append(sample)
    if not samples:
        raise DataError(
            f"{file}: none of the {len(missing)} files that it lists exists"
            f" (first: {quote_some(missing)}); paths are relative to the manifest"
        )
    name = file.stem if path.is_file() else path.resolve().name
    notes = _notes(samples, missing=missing, masks=masks)
    return Dataset(name=name, root=path, layout=LAYOUT, samples=tuple(samples), notes=notes)


def _manifests_in(folder: Path) -> list[Path]:
    files = [f for f in folder.iterdir() if f.suffix.lower() in _SUFFIXES and f.is_file()]
    files = [f for f in files if f.name[0] != "." and "path" in _header(f)]
    return sorted(files, key=lambda f: natural_key(f.name))


def _header(file: Path) -> list[str]:
    """Return the column names, or none where the table cannot be read."""
    try:
        if file.suffix.lower() == ".parquet":
            import pyarrow.parquet as pq

            return [_clean(name) for name in pq.read_schema(file).names]
        with file.open(encoding="utf-8-sig", newline="") as stream:
            return [_clean(name) for name in next(csv.reader(stream, _dialect(stream)), [])]
    except (OSError, ValueError, csv.Error):
        return []


def _rows(file: Path) -> Iterator[tuple[int, Row]]:
    """Yield each row with its line, counted from 1 with the column names as line 1."""
    try:
        yield from (_parquet if file.suffix.lower() == ".parquet" else _csv)(file)
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"{file}: the manifest cannot be read ({error})") from error


def _csv(file: Path) -> Iterator[tuple[int, Row]]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, _dialect(stream))
        names = _check_names([_clean(name) for name in next(reader, [])], file)
        for values in reader:
            if not any(value.strip() for value in values):
                continue
            if len(values) != len(names):
                raise DataError(
                    f"{file}, line {reader.line_num}: must have {len(names)} columns as the"
                    f" first line has, got {len(values)}"
                )
            yield reader.line_num, dict(zip(names, values, strict=True))


def _parquet(file: Path) -> Iterator[tuple[int, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file)
    except pa.ArrowException as error:
        raise DataError(f"{file}: the manifest cannot be read ({error})") from error
    names = _check_names([_clean(name) for name in table.column_names], file)
    yield from enumerate(table.rename_columns(names).to_pylist(), start=2)


def _dialect(stream: Any) -> type[csv.Dialect]:
    """Choose comma, semicolon or tab by the first line, in which ``path`` stands by itself."""
    first = stream.readline()
    stream.seek(0)

    class Found(csv.excel):
        delimiter = max(",;\t", key=first.count)

    return Found


def _clean(name: str) -> str:
    return name.strip().lower()


def _check_names(names: list[str], file: Path) -> list[str]:
    if "path" not in names:
        raise DataError(
            f"{file}, line 1: must name a column path, found {', '.join(names) or 'nothing'}"
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{file}, line 1: the column {twice[0]} is named twice")
    return names


def _text(value: Any) -> str:
    """Return a cell as text; missing values and Parquet's numbers are cells too."""
    if value is None or value != value:
        return ""
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        value = int(value)
    return str(value).strip()


def _sample(row: Row, *, where: str, folder: Path) -> Sample:
    if not _text(row["path"]):
        raise DataError(f"{where}: path must not be empty")
    label = _look_up(row, "label", _LABELS, where=where)
    named: Split | None = _look_up(row, "split", _SPLITS, where=where)
    split: Split = named or ("test" if label else "train")
    if label and split != "test":
        raise DataError(
            f"{where}: {split} must hold normal images only, but {row['path']} is labelled"
            " anomalous; move it to test"
        )
    mask = _text(row.get("mask"))
    return Sample(
        path=folder / _text(row["path"]),
        split=split,
        is_anomalous=label,
        patient_id=_text(row.get("patient_id")) or None,
        mask=folder / mask if mask and (folder / mask).is_file() else None,
        header={name: value for name, value in row.items() if name not in _KNOWN},
    )


def _look_up(row: Row, column: str, table: dict[str, Any], *, where: str) -> Any:
    text = _text(row.get(column)).lower()
    if text not in table:
        allowed = ", ".join(name for name in table if name)
        raise DataError(f"{where}: {column} must be one of {allowed} or empty, got {text!r}")
    return table[text]


def _notes(samples: list[Sample], *, missing: list[str], masks: list[str]) -> tuple[str, ...]:
    unlabelled = sum(s.split == "train" and s.is_anomalous is None for s in samples)
    notes = []
    if missing:
        notes.append(f"{len(missing)} files of the manifest are missing: {quote_some(missing)}.")
    if masks:
        notes.append(f"{len(masks)} masks of the manifest are missing: {quote_some(masks)}.")
    if unlabelled:
        notes.append(f"{unlabelled} training images have no label and are taken as normal.")
    return tuple(notes)
