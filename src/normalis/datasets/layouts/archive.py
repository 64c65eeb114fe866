"""A ZIP, such as the copy of a CD: taken out into the cache folder, then read as what it holds.

Nothing in an archive is trusted. Names that are absolute or leave the folder, links, and members
that need a password are left out or refused; what is inflated is counted while it is written, and
stops at the free space that must remain, whatever the archive claims. An archive is taken out once
and found again by its path, size and time; ``$NORMALIS_CACHE`` says where.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
import zipfile
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from normalis.datasets.base import Dataset, Options
from normalis.datasets.listing import folders_in, is_file
from normalis.errors import DataError, LayoutError
from normalis.files import write_json

__all__ = ["LAYOUT", "Limits", "read", "recognise", "take_out"]

LAYOUT = "ZIP"

_CHUNK = 1 << 20
_NESTED = (".zip", ".gz", ".tar", ".7z", ".rar")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an archive may become.

    Attributes:
        members: files at most.
        bytes: inflated, at most.
        free_bytes: that must remain on the disk.
    """

    members: int = 200_000
    bytes: int = 100 * 10**9
    free_bytes: int = 10**9


@dataclass
class _Count:
    written: int = 0
    left: Counter[str] = field(default_factory=Counter)


def recognise(path: Path, options: Options | None = None) -> bool:
    """Whether the path is a ZIP by its name and its bytes; one that is cut still begins as one."""
    if path.suffix.lower() != ".zip" or not is_file(path):
        return False
    with path.open("rb") as stream:
        return stream.read(2) == b"PK" or zipfile.is_zipfile(path)


def read(path: Path, options: Options | None = None) -> Dataset:
    """Take the archive out and read the folder.

    Raises:
        DataError: if it is damaged, too large, or needs a password.
    """
    from normalis.datasets import open_dataset

    chosen = options or Options()
    folder, left = _cached(path)
    notes = (f"Taken out of {path.name}.", *(f"Left out of it: {n} {why}." for why, n in left))
    try:
        found = open_dataset(
            _innermost(folder),
            normal_class=chosen.normal_class,
            ignore_tables=chosen.ignore_tables,
        )
    except DataError as error:  # names the archive, not the folder it was taken out into
        said = str(error).replace(str(_innermost(folder)), str(path)).strip()
        raise LayoutError(" ".join((said, *notes[1:]))) from error
    layout = f"{LAYOUT}: {found.layout}"
    return replace(found, name=path.stem, layout=layout, notes=(*notes, *found.notes))


def _cached(path: Path) -> tuple[Path, list[tuple[str, int]]]:
    from normalis.images.cache import cache_folder

    status = path.stat()
    said = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
    key = hashlib.sha256(said.encode("utf-8", "surrogateescape")).hexdigest()[:24]
    target = cache_folder() / "archives" / key
    if target.is_dir():
        return target, _left_out(target)
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=target.parent))
    try:
        left = take_out(path, part)
        write_json(_beside(target), sorted(left.items()))
        part.replace(target)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError) and target.is_dir():  # another process was first
            return target, _left_out(target)
        raise
    return target, sorted(left.items())


def _beside(target: Path) -> Path:
    return target.with_name(f"{target.name}.left.json")


def _left_out(target: Path) -> list[tuple[str, int]]:
    """Return what was left out when the archive was taken out, before."""
    try:
        said = json.loads(_beside(target).read_text(encoding="utf-8"))
        return [(str(why), int(count)) for why, count in said]
    except (OSError, ValueError, TypeError):  # of an earlier version, or lost: nothing is known
        return []


def take_out(path: Path, folder: Path, limits: Limits | None = None) -> Counter[str]:
    """Write the members of an archive below a folder; return what was left out, by reason.

    Raises:
        DataError: if it is damaged, too large, or needs a password.
    """
    allowed, count = limits or Limits(), _Count()
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if not m.is_dir()]
            if len(members) > allowed.members:
                raise DataError(
                    f"{path}: holds {len(members)} files, more than {allowed.members}; take it out "
                    "yourself and give the folder"
                )
            for member in members:
                _write(archive, member, folder, path, allowed, count)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError) as error:
        raise DataError(f"{path}: cannot be taken out, it is damaged ({error})") from error
    except RuntimeError as error:  # zipfile's word for a password
        raise DataError(
            f"{path}: cannot be taken out ({error}); take it out yourself and give the folder"
        ) from error
    return count.left


def _write(
    archive: zipfile.ZipFile,
    member: zipfile.ZipInfo,
    folder: Path,
    path: Path,
    limits: Limits,
    count: _Count,
) -> None:
    place, why = _place(member)
    if place is None:
        count.left[why] += 1
        return
    target = folder.joinpath(*place.parts)
    if target.exists():
        count.left["names that are there twice"] += 1
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, target.open("xb") as sink:
        while chunk := source.read(_CHUNK):
            count.written += len(chunk)
            if count.written > limits.bytes:
                raise DataError(
                    f"{path}: becomes more than {limits.bytes / 1e9:.3g} GB; take it out yourself "
                    "and give the folder"
                )
            if shutil.disk_usage(folder).free - len(chunk) < limits.free_bytes:
                raise DataError(
                    f"{path}: the disk of {folder.parent} is full; set NORMALIS_CACHE to a folder "
                    "with more room"
                )
            sink.write(chunk)


def _place(member: zipfile.ZipInfo) -> tuple[PurePosixPath | None, str]:
    """Return where a member goes, or None and why it goes nowhere."""
    kind = member.external_attr >> 16
    if stat.S_ISLNK(kind):
        return None, "links"
    name = member.filename.replace("\\", "/")
    place = PurePosixPath(name)
    is_drive = len(name) > 1 and name[1] == ":"
    if place.is_absolute() or is_drive or ".." in place.parts or "\0" in name or not place.parts:
        return None, "names that lead out of the folder"
    if place.suffix.lower() in _NESTED and not name.lower().endswith(".nii.gz"):
        return None, "archives in the archive"
    if any(len(os.fsencode(part)) > 255 for part in place.parts):
        return None, "names that are too long"
    return place, ""


def _innermost(folder: Path) -> Path:
    """Follow folders that hold one folder and nothing else."""
    while True:
        inside = [p for p in folder.iterdir() if p.name != "__MACOSX"]
        folders = list(folders_in(folder).values())
        if len(inside) != 1 or len(folders) != 1:
            return folder
        folder = folders[0]
