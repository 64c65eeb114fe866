"""Experiment records: one Parquet file of one row each, never rewritten.

A record is named by the hash of its experiment's settings. Files appear whole or not at all: they
are written under a temporary name and renamed, and two processes cannot write half a record each.
There is no index that could disagree with them; DuckDB, pandas and Polars read the folder as one
table (``SELECT * FROM 'results/records/*.parquet'``). What is shipped is packed into one file
(`normalis.research.packed`), which `Records` reads beside the others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from normalis.errors import RunError, SettingsError, did_you_mean
from normalis.files import exclusive, plain, visible, write_atomically
from normalis.research import packed

__all__ = ["Records", "listing"]

#: 2: a record is named by all its settings, those at their defaults too.
FORMAT = 2


class Records:
    """A folder of experiment records, one Parquet file each, never rewritten.

    Args:
        path: the results folder; records lie in its ``records`` folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.folder = self.path / "records"

    def __contains__(self, identity: str) -> bool:
        return self._file(identity).is_file() or identity in self._packed

    def _file(self, identity: str) -> Path:
        return self.folder / f"{identity}.parquet"

    @cached_property
    def _packed(self) -> dict[str, dict[str, Any]]:
        """Records of the packed file, if there is one."""
        return {row["id"]: row for row in packed.read(self.path)}

    def claim(self, identity: str) -> Any:
        """Return a context in which this process alone works on an experiment.

        Raises:
            ClaimedError: on entering, if another process has it.
        """
        return exclusive(self.path / ".claims" / identity, what=f"experiment {identity}")

    def append(self, identity: str, record: Mapping[str, Any]) -> None:
        """Add a record; one that is there already stays as it is.

        Args:
            identity: hash of the experiment's settings.
            record: column -> plain value, list or NumPy array.
        """
        if identity not in self:
            self.write({"id": identity, "format": FORMAT, **record})

    def write(self, row: Mapping[str, Any]) -> None:
        """Write a whole record, ``id`` and ``format`` included, in place of one of that name."""
        pa, pq = packed.arrow()
        columns = {k: pa.array([_arrow(v)], _type_of(k)) for k, v in row.items()}
        table = pa.table(columns)
        write_atomically(
            self._file(row["id"]),
            lambda p: pq.write_table(table, p, **_encoding(columns)),
        )

    def identities(self) -> list[str]:
        """Return the identities of all records, sorted."""
        return sorted({p.stem for p in self.folder.glob("*.parquet")} | self._packed.keys())

    def read(self, identity: str) -> dict[str, Any]:
        """Return one record.

        Raises:
            RunError: if it is missing, damaged or none of ours.
        """
        if identity in self._packed and not self._file(identity).is_file():
            return dict(self._packed[identity])
        return _read_record(self._file(identity))

    def table(self) -> list[dict[str, Any]]:
        """Return all records without their per-image columns; JSON columns as plain values.

        Raises:
            RunError: if a record is damaged or none of ours.
        """
        return [self._row(identity) for identity in self.identities()]

    def named(self) -> Iterator[dict[str, Any]]:
        """Yield ``id``, ``training_key`` and ``settings`` of every record, and read no more.

        Raises:
            RunError: if a record is damaged or none of ours.
        """
        files = {file.stem: file for file in sorted(self.folder.glob("*.parquet"))}
        rows = [_read_record(file, without=packed.PER_IMAGE) for file in files.values()]
        rows += [row for row in packed.read_names(self.path) if row["id"] not in files]
        for row in rows:
            try:
                settings = json.loads(row["settings"])
            except (KeyError, TypeError, ValueError, RecursionError) as error:
                raise RunError(f"record {row['id']}: is damaged ({error}); remove it") from error
            yield {"id": row["id"], "training_key": row.get("training_key"), "settings": settings}

    def _row(self, identity: str) -> dict[str, Any]:
        file = self._file(identity)
        if file.is_file():
            row = _read_record(file, without=packed.PER_IMAGE)
        else:
            row = {k: v for k, v in self._packed[identity].items() if k not in packed.PER_IMAGE}
        try:
            return {k: json.loads(v) if k in _JSON else v for k, v in row.items()}
        except (TypeError, ValueError, RecursionError) as error:
            raise RunError(f"{file}: is damaged ({error}); remove it") from error

    def all(self) -> Iterator[dict[str, Any]]:
        """Yield every record."""
        yield from map(self.read, self.identities())


_JSON = ("settings", "metrics", "history", "versions")
_FLOATS = ("anomaly_score", "position", "nearest_ncc")


#: Columns without which a Parquet file is no record.
_NEEDED = ("id", "dataset", "method", "latent_dim", "seed")


def _read_record(file: Path, *, without: Sequence[str] = ()) -> dict[str, Any]:
    """Return the one row of a record."""
    pa, pq = packed.arrow()

    try:
        opened = pq.ParquetFile(file)
        names = [n for n in opened.schema_arrow.names if n not in without]
        missing = [n for n in _NEEDED if n not in names]
        count = opened.metadata.num_rows
        if missing or count != 1:
            wrong = f"has no column {missing[0]!r}" if missing else f"has {count} rows"
            raise RunError(f"{file}: must be a record of one experiment, {wrong}; remove it")
        row: dict[str, Any] = opened.read(columns=names).to_pylist()[0]
    except (OSError, pa.ArrowException, IndexError, KeyError, ValueError) as error:
        raise RunError(f"{file}: cannot be read as a record ({error}); remove it") from error
    return row


_SHOWN = (
    "dataset", "method", "latent_dim", "seed", "epochs", "scorer", "reduction", "auroc",
    "average_precision", "pixel_average_precision", "best_dice", "n_train", "fit_s", "id",
)  # fmt: skip


def listing(
    results: str | Path,
    *,
    where: Mapping[str, str] | None = None,
    columns: Sequence[str] | None = None,
    sort: str | None = None,
) -> tuple[list[str], list[list[Any]]]:
    """Return the records of a results folder as a table.

    Args:
        results: the results folder.
        where: column -> value as text; only records equal in all of them.
        columns: which ones to show; None shows the usual ones.
        sort: column to sort by, largest first; None sorts by data set, method, latent dimension.

    Returns:
        The head and the rows.

    Raises:
        SettingsError: if a column is unknown; names the nearest one.
    """
    rows = Records(results).table()
    known = list(dict.fromkeys(name for row in rows for name in row))
    for name in [*(where or {}), *(columns or []), *([sort] if sort else [])]:
        if rows and name not in known:
            hint = did_you_mean(name, known) or f"; known: {', '.join(known)}"
            raise SettingsError(f"records have no column {name!r}{hint}")
    rows = [r for r in rows if all(str(r.get(k)) == v for k, v in (where or {}).items())]
    if sort:
        rows.sort(key=lambda r: (r.get(sort) is not None, r.get(sort)), reverse=True)
    else:
        rows.sort(key=lambda r: (r["dataset"], r["method"], r["latent_dim"] or 0, r["seed"]))
    head = list(columns or (c for c in _SHOWN if any(r.get(c) is not None for r in rows)))
    return head, [[r.get(c) for c in head] for r in rows]


def _type_of(column: str) -> Any:
    """Return a column's Arrow type where the first value might not tell it, else None."""
    pa, _ = packed.arrow()
    if column in _FLOATS:
        return pa.list_(pa.float32())
    if column in ("latent_dim", "seed", "epochs", "n_train", "n_parameters", "threads"):
        return pa.int64()
    return None


def _encoding(columns: Iterable[str]) -> dict[str, Any]:
    """Return how a record is written: a third smaller with the bytes of floats kept apart."""
    paths = {c: f"{c}.list.element" if c in _FLOATS else c for c in columns}
    return {
        "compression": "zstd",
        "compression_level": 19,
        "write_statistics": False,
        "use_dictionary": [f"{c}.list.element" for c in ("path", "patient_id", "split")],
        "use_byte_stream_split": [p for c, p in paths.items() if c in _FLOATS],
    }


def _arrow(value: Any) -> Any:
    """Return a value that Arrow stores; mappings as JSON, since their keys differ by method."""
    if isinstance(value, Mapping):
        return json.dumps(value, default=plain, sort_keys=True)
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, str):
        return _as_utf8(value)
    if isinstance(value, list | tuple):
        return [_as_utf8(v) if isinstance(v, str) else v for v in value]
    return value


def _as_utf8(text: str) -> str:
    """Return a name as Parquet takes it, which knows no bytes that are not UTF-8."""
    return text if text.isascii() or not _LONE.search(text) else visible(text)


_LONE = re.compile("[\ud800-\udfff]")
