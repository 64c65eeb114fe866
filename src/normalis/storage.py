"""Run folders: what is written once and read safely, and hashes of what is in them.

A **run folder** holds one fitted detector::

    model.safetensors   arrays, no pickle
    model.json          settings, versions, seed, device, data fingerprint, history, checksums
    skipped.csv         images that could not be read, with the reason
    checkpoint.safetensors   only while a run is unfinished

The files of a finished run are first written as ``.new-...``; with the last of them, the settings,
the run is the new one, and they are renamed into their places. Whoever reads the folder, or works
in it next, goes on from there if that was interrupted. A run that is replaced is therefore there as
a whole, the old one or the new one, at every moment.
"""

from __future__ import annotations

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

from normalis.errors import RunError
from normalis.files import (
    ClaimedError,
    exclusive,
    is_temporary,
    plain,
    remove_temporaries,
    write_atomically,
    write_csv,
    write_json,
)

__all__ = [
    "ClaimedError",
    "RunFolder",
    "content_hash",
    "exclusive",
    "file_hash",
    "git_revision",
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
    EVALUATIONS = "evaluation*.json"

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
                if name == self.SETTINGS:  # what was said of an older run is not true of this one
                    for file in self.path.glob(self.EVALUATIONS):
                        file.unlink(missing_ok=True)
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
    def identity(self) -> str:
        """Hash of the run: of its settings, and with them of when and on what it was fitted.

        Raises:
            RunError: as `read_settings`.
        """
        return str(self.read_settings()["sha256"]["settings"])

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
