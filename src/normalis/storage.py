"""Results that are written once and read safely: run folders and experiment records.

A **run folder** holds one fitted detector::

    model.safetensors   arrays, no pickle
    model.json          settings, versions, seed, device, data fingerprint, history, checksums
    skipped.csv         images that could not be read, with the reason
    checkpoint.safetensors   only while a run is unfinished

An **experiment record** is one Parquet file of one row, named by the hash of the experiment's
settings. Files appear whole or not at all: they are written under a temporary name and renamed.
There is no index that could disagree with them; DuckDB, pandas and Polars read the folder as one
table (``SELECT * FROM 'results/records/*.parquet'``).
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from normalis.errors import RunError, SettingsError

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


class ClaimedError(RunError):
    """Another process is working on the same run or experiment."""


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


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name beside it, then rename it.

    Args:
        path: where the file shall appear, whole or not at all.
        write: writes to the path that it is given.

    Raises:
        RunError: if the folder cannot be written to, or the disk is full; what was there stays.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        _as_umask(temporary)
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(
            f"{path}: cannot be written ({reason}); nothing there was changed. "
            "Free space or choose another output folder"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _as_umask(path: Path) -> None:
    """Give a file the permissions that an ordinary new file gets; mkstemp makes it private."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def write_json(path: Path, value: Any) -> None:
    """Write a plain value as JSON, atomically; floats keep every digit."""
    text = json.dumps(value, indent=1, allow_nan=True, default=_plain) + "\n"
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def _plain(value: Any) -> Any:
    """Turn NumPy scalars and arrays into plain values."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not a plain value")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table as CSV, atomically."""

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(rows)

    write_atomically(path, write)


def append_safe(path: Path) -> None:
    """Refuse to overwrite: raise if something is at ``path`` already.

    Raises:
        RunError: if the path exists and is not an empty folder.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunError(f"{path}: exists already and is never overwritten; choose another name")


@contextmanager
def exclusive(path: Path, *, what: str) -> Iterator[None]:
    """Hold a lock file while the block runs; the system frees it if the process dies.

    Args:
        path: the lock file.
        what: what is being protected, for the message.

    Raises:
        ClaimedError: if another process holds the lock.
        RunError: if the folder cannot be written to.
    """
    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise ClaimedError(
            f"{what} is being written by another process; wait for it or choose another folder"
        ) from error
    except OSError as error:
        raise RunError(
            f"{path.parent}: cannot be written ({error.strerror or error}); choose another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


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
        return (self.path / self.SETTINGS).is_file()

    def locked(self) -> Any:
        """Return a context in which no other process writes this run."""
        return exclusive(self.path / ".lock", what=f"{self.path}: the run")

    def check_writable(self, *, overwrite: bool) -> None:
        """Refuse a finished run and a folder that holds other things.

        Raises:
            RunError: if writing here would lose something.
        """
        if self.finished and not overwrite:
            raise RunError(
                f"{self.path}: holds a finished run, which is never overwritten unless asked: "
                "choose another --out or add --overwrite"
            )
        known = {self.MODEL, self.SETTINGS, self.SKIPPED, self.CHECKPOINT, ".lock", "audit.json"}
        if self.path.is_dir() and not self.finished:
            other = sorted(p.name for p in self.path.iterdir() if p.name not in known)
            other = [name for name in other if not name.startswith(".model.")]
            if other and not (self.path / self.CHECKPOINT).exists():
                raise RunError(
                    f"{self.path}: must be a new or empty folder or an unfinished run, holds "
                    f"{', '.join(other[:3])}; choose another --out"
                )
        elif self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path}: must be a folder, is a file; choose another --out")

    def write(self, arrays: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Write the finished run; ``model.json`` comes last and completes it.

        Args:
            arrays: name -> NumPy array.
            settings: plain values.
        """
        write_atomically(self.path / self.MODEL, lambda p: _save_arrays(p, arrays))
        body = {"format": FORMAT, **settings}
        body["sha256"] = {
            self.MODEL: file_hash(self.path / self.MODEL),
            "settings": content_hash(json.loads(json.dumps(body, default=_plain))),
        }
        write_json(self.path / self.SETTINGS, body)
        (self.path / self.CHECKPOINT).unlink(missing_ok=True)

    def read_settings(self) -> dict[str, Any]:
        """Return the contents of ``model.json``, checked against their checksum.

        Raises:
            RunError: if the run is missing, unfinished, of a later format, or was edited.
        """
        file = self.path / self.SETTINGS
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

        file = self.path / self.MODEL
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
        note = {"progress": json.dumps(progress, default=_plain)}
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
            RunError: if it is missing or damaged.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        file = self.folder / f"{identity}.parquet"
        try:
            row: dict[str, Any] = pq.ParquetFile(file).read().to_pylist()[0]
        except (OSError, pa.ArrowInvalid, IndexError) as error:
            raise RunError(f"{file}: cannot be read as a record ({error}); remove it") from error
        return row

    def table(self) -> list[dict[str, Any]]:
        """Return all records without their per-image columns; JSON columns as plain values.

        Raises:
            RunError: if a record is damaged.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = []
        for file in sorted(self.folder.glob("*.parquet")):
            try:
                opened = pq.ParquetFile(file)
                names = [n for n in opened.schema_arrow.names if n not in PER_IMAGE]
                row = opened.read(columns=names).to_pylist()[0]
            except (OSError, pa.ArrowInvalid, IndexError) as error:
                raise RunError(
                    f"{file}: cannot be read as a record ({error}); remove it"
                ) from error
            rows.append({k: json.loads(v) if k in _JSON else v for k, v in row.items()})
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
        return json.dumps(value, default=_plain, sort_keys=True)
    return value.tolist() if hasattr(value, "tolist") else value
