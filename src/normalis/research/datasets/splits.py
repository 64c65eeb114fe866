"""Ways of building a canonical layout that several data sets share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from normalis.datasets.layouts import benchmark, brats, mvtec
from normalis.datasets.listing import list_images, quote_some
from normalis.errors import DataError
from normalis.research.datasets.catalogue import Preparation
from normalis.research.datasets.preparing import check_counts, find_folder, require_files

__all__ = [
    "Lists",
    "copy_benchmark",
    "copy_brats",
    "copy_mvtec",
    "from_split",
    "read_split",
    "write_benchmark",
]

Lists = dict[tuple[str, str], list[str]]
"""(split, "0" or "1") -> file names."""

_KEYS = (("train", "0"), ("test", "0"), ("test", "1"))


def copy_benchmark(job: Preparation) -> bool:
    """Copy the authors' ``images/`` + ``data.json``; False where the raw form is another."""
    root = find_folder(job.raw, "data.json", "images")
    if root is None or job.options.get("split"):
        return False
    lists = read_split(root / "data.json")
    names = [name for key in _KEYS for name in lists[key]]
    files = {name: root / "images" / name for name in names}
    require_files(files, (n for n, f in files.items() if f.is_file()), where=root)
    for name, file in files.items():
        job.put(file, job.work / "images" / name)
    write_benchmark(job, lists)
    return True


def copy_brats(job: Preparation) -> bool:
    """Copy ``train/`` and ``test/{normal,tumor,annotation}``; False where it is not there."""
    parts = ("train", "test/normal", "test/tumor", "test/annotation")
    root = find_folder(job.raw, *parts)
    if root is None:
        return False
    _copy(job, root, parts)
    made = brats.read(job.work)
    bare = [s.path.name for s in made.samples if s.is_anomalous and s.mask is None]
    if bare:
        raise DataError(
            f"{root}: every tumour image must have a mask in test/annotation,"
            f" {len(bare)} have none: {quote_some(bare)}"
        )
    check_counts(made, job.counts, where=root)
    return True


def copy_mvtec(job: Preparation) -> bool:
    """Copy ``train/good`` and ``test/{good,Ungood}``; False where it is not there."""
    parts = ("train/good", "test/good", "test/Ungood")
    root = find_folder(job.raw, *parts)
    if root is None:
        return False
    _copy(job, root, parts)
    check_counts(mvtec.read(job.work), job.counts, where=root)
    return True


def _copy(job: Preparation, root: Path, parts: tuple[str, ...]) -> None:
    for part in parts:
        for image in list_images(root / part).images:
            job.put(image, job.work / image.relative_to(root))


def from_split(job: Preparation, convert: Callable[[Path, Path], None] | None = None) -> None:
    """Collect the files that a split names from anywhere below the raw folder.

    Files are found by name; where the raw files have another format, by name without suffix, and
    ``convert(source, target)`` writes the image.

    Args:
        job: with ``options["split"]``, the authors' ``data.json``; by default a JSON in the raw
            folder.
        convert: for files whose suffix differs from the one that the split names.

    Raises:
        DataError: if there is no split, or files are missing or ambiguous.
    """
    split = _find_split(job)
    lists = read_split(split)
    names = [name for key in _KEYS for name in lists[key]]
    files = _files_by_name(job, names, by_stem=convert is not None)
    require_files(names, files, where=job.raw)
    (job.work / "images").mkdir(exist_ok=True)

    def make(name: str) -> None:
        source, target = files[name], job.work / "images" / name
        if convert is None or source.suffix.lower() == target.suffix.lower():
            job.put(source, target)
        else:
            convert(source, target)

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(make, dict.fromkeys(names)):
            pass
    write_benchmark(job, lists)


def write_benchmark(job: Preparation, lists: Lists) -> None:
    """Write ``data.json`` for the images that are in place, and check the counts."""
    data = {
        "train": {"0": lists["train", "0"]},
        "test": {"0": lists["test", "0"], "1": lists["test", "1"]},
    }
    (job.work / "data.json").write_text(json.dumps(data), encoding="utf-8")
    check_counts(benchmark.read(job.work), job.counts, where=job.raw)


def read_split(file: Path) -> Lists:
    """Read the lists of a ``data.json``, without those that are called ``unlabeled``.

    Raises:
        DataError: if it has another form, or a name leaves the folder.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8-sig"))
        lists = {(split, label): list(data[split][label]) for split, label in _KEYS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f'{file}: must hold {{"train": {{"0": [names]}}, "test": {{"0": [names], "1": [names]'
            f"}}}}, but reading it failed with {error!r}"
        ) from error
    for name in (name for names in lists.values() for name in names):
        path = PurePosixPath(str(name))
        if not isinstance(name, str) or path.is_absolute() or ".." in path.parts:
            raise DataError(f"{file}: must list file names below images/, got {name!r}")
    return lists


def _find_split(job: Preparation) -> Path:
    if job.options.get("split"):
        split = Path(job.options["split"]).expanduser()
        if not split.is_file():
            raise DataError(f"{split}: there is no such split file")
        return split
    found = sorted(job.raw.rglob("*data.json"))
    if len(found) != 1:
        names = ", ".join(str(f.relative_to(job.raw)) for f in found) or "none"
        raise DataError(
            f"{job.raw}: needs the authors' split, a data.json; found {names}. Give it as split"
            " (--split FILE)"
        )
    return found[0]


def _files_by_name(job: Preparation, names: list[str], *, by_stem: bool) -> Mapping[str, Path]:
    """Find the file of each name; the same name in two folders must not be left to chance."""
    exact: dict[str, list[Path]] = {}
    stems: dict[str, list[Path]] = {}
    for file in list_images(job.raw).images:
        exact.setdefault(file.name, []).append(file)
        stems.setdefault(file.stem, []).append(file)
    found = {}
    for name in dict.fromkeys(names):
        base = PurePosixPath(name)
        files = exact.get(base.name) or (stems.get(base.stem, []) if by_stem else [])
        if len({_content(file) for file in files} if len(files) > 1 else files) > 1:
            raise DataError(
                f"{job.raw}: {name} is there {len(files)} times with different content:"
                f" {quote_some(f.relative_to(job.raw) for f in files)}; leave one of them"
            )
        if files:
            found[name] = files[0]
    return found


def _content(file: Path) -> bytes:
    return file.read_bytes()
