"""All records of a results folder in two compact files, as they are shipped.

::

    records.parquet    a row per record; what belongs to images is named by the column ``images``
    images.parquet     a row per set of images: path, split, label, patient, position, nearest_ncc

Many experiments share their images, so that these columns are most of what hundreds of records
hold. Scores keep `BITS` bits of their fraction, a relative error of at most 3e-5; metrics, settings
and histories are kept whole.

::

    normalis research pack RESULTS --out PACKED
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normalis.errors import RunError
from normalis.errors.extras import require
from normalis.files import write_atomically

__all__ = [
    "BITS",
    "PER_IMAGE",
    "arrow",
    "pack",
    "read",
    "read_names",
    "rounded",
    "write_arrow",
    "write_table",
]

#: Columns of a record with one entry per image.
PER_IMAGE = (
    "path", "split", "is_anomalous", "patient_id", "position", "nearest_ncc", "anomaly_score",
)  # fmt: skip
#: Those that experiments on the same images share.
_SHARED = PER_IMAGE[:-1]
#: Bits that the fraction of a packed score keeps, of 23.
BITS = 14
RECORDS, IMAGES = "records.parquet", "images.parquet"


def arrow() -> tuple[Any, Any]:
    """Return ``pyarrow`` and ``pyarrow.parquet``, of the extra ``research``.

    Raises:
        MissingExtraError: with the line that installs them.
    """
    why = "reading and writing experiment records"
    return (
        require("pyarrow", extra="research", why=why),
        require("pyarrow.parquet", extra="research", why=why),
    )


def pack(records: Iterable[Mapping[str, Any]], out: Path) -> tuple[Path, Path]:
    """Write records into the two files; return their paths.

    Args:
        records: of `normalis.research.records.Records.all`.
        out: the folder.
    """
    sets: dict[str, dict[str, Any]] = {}
    rows = []
    alike = ("data", "method", "scorer", "reduction", "latent_dim", "seed")  # the next is smaller
    for record in sorted(records, key=lambda r: [str(r.get(name)) for name in alike]):
        shared = {name: record.get(name) for name in _SHARED}
        found = sets.setdefault(json.dumps(shared), {"images": len(sets), **shared})
        row = {k: v for k, v in record.items() if k not in _SHARED}
        row["anomaly_score"] = rounded(record["anomaly_score"], BITS)
        rows.append({**row, "images": found["images"]})
    write_table(out / RECORDS, rows, floats=("anomaly_score",))
    write_table(out / IMAGES, list(sets.values()), floats=("position", "nearest_ncc"))
    return out / RECORDS, out / IMAGES


def rounded(values: Any, bits: int) -> NDArray[np.float32]:
    """Return float32 values of which the fraction keeps so many bits, to the nearest."""
    drop = 23 - bits
    raw = np.asarray(values, np.float32).view(np.uint32)
    raw = (raw + np.uint32(1 << (drop - 1))) & ~np.uint32((1 << drop) - 1)
    return raw.view(np.float32)


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], *, floats: Sequence[str]) -> None:
    """Write rows as Parquet, small: the bytes of floats apart, so that equal ones meet.

    Args:
        path: the file.
        rows: with any columns each; those that a row lacks are null.
        floats: columns that are lists of float32.
    """
    pa, _ = arrow()
    names = list(dict.fromkeys(name for row in rows for name in row))
    kinds = {name: pa.list_(pa.float32()) for name in floats}
    write_arrow(
        path, pa.table({n: pa.array([r.get(n) for r in rows], kinds.get(n)) for n in names})
    )


def write_arrow(path: Path, table: Any) -> None:
    """Write an Arrow table as `write_table` does."""
    pa, pq = arrow()
    floats = [f.name for f in table.schema if f.type == pa.list_(pa.float32())]
    encoding = {
        "compression": "brotli",  # 4 % smaller than zstd, whose records are written one at a time
        "compression_level": 11,
        "data_page_size": 64 << 20,
        "write_statistics": False,
        "use_dictionary": [n for n in table.schema.names if n not in floats],
        "use_byte_stream_split": [f"{n}.list.element" for n in floats],
    }
    write_atomically(path, lambda p: pq.write_table(table, p, **encoding))


def read_names(folder: Path) -> list[dict[str, Any]]:
    """Return ``id``, ``training_key`` and ``settings`` of the packed records.

    Raises:
        RunError: if the file is damaged.
    """
    pa, pq = arrow()
    if not (folder / RECORDS).is_file():
        return []
    columns = ["id", "training_key", "settings"]
    try:
        rows: list[dict[str, Any]] = pq.read_table(folder / RECORDS, columns=columns).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{folder}: its packed records cannot be read ({error})") from error
    return rows


def read(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of the two files, as they were before they were packed.

    Raises:
        RunError: if a file is damaged, or one of the two is missing.
    """
    pa, pq = arrow()

    if not (folder / RECORDS).is_file():
        return
    try:
        rows = pq.ParquetFile(folder / RECORDS).read().to_pylist()
        sets = pq.ParquetFile(folder / IMAGES).read().to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{folder}: its packed records cannot be read ({error})") from error
    shared = {row.pop("images"): row for row in sets}
    for row in rows:
        images = shared[row.pop("images")]
        yield {**row, **images}
