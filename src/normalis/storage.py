"""Results that are written once and read safely: run folders and experiment records.

A **run folder** holds one fitted detector::

    model.safetensors   arrays, no pickle
    model.json          settings, versions, seed, device, data fingerprint, history, checksums
    skipped.csv         images that could not be read, with the reason
    checkpoint.safetensors   only while a run is unfinished

The files of a finished run are first written as ``.new-...``; with the last of them, the settings,
the run is the new one, and they are renamed into their places. Whoever reads the folder, or works
in it next, goes on from there if that was interrupted. A run that is replaced is therefore there as
a whole, the old one or the new one, at every moment.

An **experiment record** is one Parquet file of one row, named by the hash of the experiment's
settings. Files appear whole or not at all: they are written under a temporary name and renamed.
There is no index that could disagree with them; DuckDB, pandas and Polars read the folder as one
table (``SELECT * FROM 'results/records/*.parquet'``).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from normalis.errors import RunError, SettingsError
from normalis.files import (
    ClaimedError,
    exclusive,
    is_temporary,
    plain,
    remove_temporaries,
    visible,
    write_atomically,
    write_csv,
    write_json,
)

__all__ = [
    "ClaimedError",
    "Records",
    "RunFolder",
    "append_safe",
    "content_hash",
    "exclusive",
    "listing",
    "versions",
    "write_atomically",
    "write_csv",
    "write_json",
]

FORMAT = 1

_PACKAGES = ("normalis", "torch", "numpy", "scikit-learn", "pillow", "pydicom", "nibabel")


def content_hash(value: Any) -> str:
    """Return the SHA-256 of a plain value, equal for equal values whatever the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of Python, of normalis and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_revision() -> str | None:
    """Return the revision of the checkout that the package runs from, None outside of one."""
    git = shutil.which("git")
    here = Path(__file__).resolve().parent
    if git is None or "site-packages" in here.parts:
        return None
    command = [git, "-C", str(here), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def append_safe(path: Path) -> None:
    """Refuse to overwrite: raise if something is at ``path`` already.

    Raises:
        RunError: if the path exists and is not an empty folder.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunError(f"{path}: exists already and is never overwritten; choose another name")


def _save_arrays(path: Path, arrays: Mapping[str, Any], note: dict[str, str] | None = None) -> None:
    """Write arrays as safetensors; raises OSError where the disk is full, as other files do."""
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    # safetensors writes memory as it lies, whatever the strides.
    whole = {name: np.asarray(value, order="C") for name, value in arrays.items()}
    try:
        save_file(whole, path, metadata=note)
    except SafetensorError as error:
        raise OSError(str(error)) from error


#: How versions before this one named the files that they were writing.
_OLD_TEMPORARY = re.compile(
    r"\.(model\.safetensors|model\.json|skipped\.csv|checkpoint\.safetensors)\.[a-z0-9_]{8}"
)


class RunFolder:
    """The folder of one fitted detector.

    Args:
        path: the folder; created on first writing.
    """

    MODEL, SETTINGS, SKIPPED = "model.safetensors", "model.json", "skipped.csv"
    CHECKPOINT = "checkpoint.safetensors"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def finished(self) -> bool:
        """Whether the run is complete."""
        return self.file(self.SETTINGS).is_file()

    def file(self, name: str) -> Path:
        """Return where a file of the finished run lies: in its place, or still waiting to go there.

        Args:
            name: ``MODEL``, ``SETTINGS`` or ``SKIPPED``.
        """
        waiting = self._new(name)
        there = self._new(self.SETTINGS).is_file() and waiting.is_file()
        return waiting if there else self.path / name

    def _new(self, name: str) -> Path:
        return self.path / f".new-{name}"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let no other process write this run; put in order what a killed one left."""
        with exclusive(self.path / ".lock", what=f"{self.path}: the run"):
            self._tidy()
            yield

    def _tidy(self) -> None:
        if self._new(self.SETTINGS).is_file():
            self._commit()
        for name in (self.MODEL, self.SKIPPED):
            self._new(name).unlink(missing_ok=True)
        remove_temporaries(self.path)
        for file in self.path.iterdir():
            if _OLD_TEMPORARY.fullmatch(file.name):
                file.unlink(missing_ok=True)

    def check_writable(self, *, overwrite: bool) -> None:
        """Refuse a finished run and a folder that holds other things.

        Raises:
            RunError: if writing here would lose something.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path}: must be a folder, is a file; choose another --out")
        if self.finished and not overwrite:
            raise RunError(
                f"{self.path}: holds a finished run, which is never overwritten unless asked: "
                "choose another --out or add --overwrite"
            )
        if self.path.is_dir() and not self.finished and not self.unfinished:
            other = sorted(p.name for p in self.path.iterdir() if not self._is_ours(p.name))
            if other:
                raise RunError(
                    f"{self.path}: must be a new or empty folder or an unfinished run, holds "
                    f"{', '.join(other[:3])}; choose another --out"
                )

    def _is_ours(self, name: str) -> bool:
        files = (self.MODEL, self.SETTINGS, self.SKIPPED)
        known = {*files, *(f".new-{file}" for file in files), self.CHECKPOINT, ".lock"}
        is_old = _OLD_TEMPORARY.fullmatch(name) is not None
        return name in known | {"audit.json"} or is_temporary(name) or is_old

    def write(
        self,
        arrays: Mapping[str, Any],
        settings: Mapping[str, Any],
        skipped: Iterable[Sequence[Any]] = (),
    ) -> None:
        """Write the finished run; an older one is there as a whole until the new one is.

        Args:
            arrays: name -> NumPy array.
            settings: plain values.
            skipped: (path, reason) of images that could not be read.
        """
        model = self._new(self.MODEL)
        write_atomically(model, lambda p: _save_arrays(p, arrays))
        write_csv(self._new(self.SKIPPED), ("path", "reason"), skipped)
        body = {"format": FORMAT, **settings}
        body["sha256"] = {
            self.MODEL: file_hash(model),
            "settings": content_hash(json.loads(json.dumps(body, default=plain))),
        }
        write_json(self._new(self.SETTINGS), body)
        self._commit()

    def _commit(self) -> None:
        """Put the files of a new run into their places; the settings last."""
        try:
            (self.path / self.CHECKPOINT).unlink(missing_ok=True)
            for name in (self.MODEL, self.SKIPPED, self.SETTINGS):
                if self._new(name).is_file():
                    self._new(name).replace(self.path / name)
        except OSError as error:
            raise RunError(
                f"{self.path}: cannot be written ({error.strerror or error}); the new run lies "
                "there complete: run the same command again"
            ) from error

    def read_settings(self) -> dict[str, Any]:
        """Return the contents of ``model.json``, checked against their checksum.

        Raises:
            RunError: if the run is missing, unfinished, of a later format, or was edited.
        """
        file = self.file(self.SETTINGS)
        if not file.is_file():
            state = "unfinished: run fit again to resume it" if self.unfinished else "not a run"
            raise RunError(f"{self.path}: must hold {self.SETTINGS}, does not ({state})")
        try:
            body: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            stored, written = body["sha256"]["settings"], body["format"]
            body["sha256"][self.MODEL]
            found = content_hash({k: v for k, v in body.items() if k != "sha256"})
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise RunError(f"{file}: is damaged ({error!r}); fit the model again") from error
        if written != FORMAT:
            raise RunError(
                f"{file}: has format {written!r}, this version reads {FORMAT}: "
                "use the version of normalis that wrote it"
            )
        if stored != found:
            raise RunError(
                f"{file}: was changed after it was written; restore it or fit the model again"
            )
        return body

    @property
    def unfinished(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return (self.path / self.CHECKPOINT).is_file()

    def read_arrays(self) -> dict[str, Any]:
        """Return the arrays of ``model.safetensors``, checked against their checksum.

        Raises:
            RunError: if the file is missing or not the one that was written.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        file = self.file(self.MODEL)
        if not file.is_file():
            raise RunError(f"{file}: is missing; restore it or fit the model again")
        if file_hash(file) != self.read_settings()["sha256"][self.MODEL]:
            raise RunError(
                f"{file}: is not the file that was written; restore it or fit the model again"
            )
        try:
            arrays: dict[str, Any] = load_file(file)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{file}: is damaged ({error}); fit the model again") from error
        return arrays

    def write_checkpoint(self, arrays: Mapping[str, Any], progress: Mapping[str, Any]) -> None:
        """Write what a resumed run needs, in one file."""
        note = {"progress": json.dumps(progress, default=plain)}
        write_atomically(self.path / self.CHECKPOINT, lambda p: _save_arrays(p, arrays, note))

    def read_checkpoint(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Return (arrays, progress) of an unfinished run, None if there is none."""
        from safetensors import SafetensorError, safe_open

        file = self.path / self.CHECKPOINT
        if not file.is_file():
            return None
        try:
            with safe_open(file, framework="numpy") as opened:
                progress: dict[str, Any] = json.loads(opened.metadata()["progress"])
                return {k: opened.get_tensor(k) for k in opened.keys()}, progress  # noqa: SIM118
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise RunError(f"{file}: is damaged ({error}); remove it to start again") from error


class Records:
    """A folder of experiment records, one Parquet file each, never rewritten.

    Args:
        path: the results folder; records lie in its ``records`` folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.folder = self.path / "records"

    def __contains__(self, identity: str) -> bool:
        return (self.folder / f"{identity}.parquet").is_file()

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
        import pyarrow as pa
        import pyarrow.parquet as pq

        if identity in self:
            return
        row = {"id": identity, "format": FORMAT, **record}
        columns = {k: pa.array([_arrow(v)], _type_of(k)) for k, v in row.items()}
        table = pa.table(columns)
        write_atomically(
            self.folder / f"{identity}.parquet",
            lambda p: pq.write_table(table, p, **_encoding(columns)),
        )

    def identities(self) -> list[str]:
        """Return the identities of all records, sorted."""
        return sorted(p.stem for p in self.folder.glob("*.parquet"))

    def read(self, identity: str) -> dict[str, Any]:
        """Return one record.

        Raises:
            RunError: if it is missing, damaged or none of ours.
        """
        return _read_record(self.folder / f"{identity}.parquet")

    def table(self) -> list[dict[str, Any]]:
        """Return all records without their per-image columns; JSON columns as plain values.

        Raises:
            RunError: if a record is damaged or none of ours.
        """
        rows = []
        for file in sorted(self.folder.glob("*.parquet")):
            row = _read_record(file, without=PER_IMAGE)
            try:
                rows.append({k: json.loads(v) if k in _JSON else v for k, v in row.items()})
            except (TypeError, ValueError, RecursionError) as error:
                raise RunError(f"{file}: is damaged ({error}); remove it") from error
        return rows

    def all(self) -> Iterator[dict[str, Any]]:
        """Yield every record."""
        yield from map(self.read, self.identities())


#: Columns of a record with one entry per image.
PER_IMAGE = (
    "path", "split", "is_anomalous", "patient_id", "position", "nearest_ncc", "anomaly_score",
)  # fmt: skip
_JSON = ("settings", "metrics", "history", "versions")
_FLOATS = ("anomaly_score", "position", "nearest_ncc")


#: Columns without which a Parquet file is no record.
_NEEDED = ("id", "dataset", "method", "latent_dim", "seed")


def _read_record(file: Path, *, without: Sequence[str] = ()) -> dict[str, Any]:
    """Return the one row of a record."""
    import pyarrow as pa
    import pyarrow.parquet as pq

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
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise SettingsError(f"records have no column {name!r}; {hint}")
    rows = [r for r in rows if all(str(r.get(k)) == v for k, v in (where or {}).items())]
    if sort:
        rows.sort(key=lambda r: (r.get(sort) is not None, r.get(sort)), reverse=True)
    else:
        rows.sort(key=lambda r: (r["dataset"], r["method"], r["latent_dim"] or 0, r["seed"]))
    head = list(columns or (c for c in _SHOWN if any(r.get(c) is not None for r in rows)))
    return head, [[r.get(c) for c in head] for r in rows]


def _type_of(column: str) -> Any:
    """Return a column's Arrow type where the first value might not tell it, else None."""
    import pyarrow as pa

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
