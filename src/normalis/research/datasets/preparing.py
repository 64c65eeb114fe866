"""What a user downloads becomes a canonical layout, complete or not at all.

The raw form may be a folder, a zip or tar archive, or a folder of such archives. The data set's own
file knows which forms there are; this module unpacks, checks the counts, and puts the result in
place under its name in one step.
"""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from normalis.datasets.atomic import new_folder
from normalis.datasets.base import Dataset
from normalis.datasets.listing import list_images, quote_some
from normalis.errors import DataError, SettingsError, did_you_mean
from normalis.research.datasets.catalogue import Counts, NamedDataset, Preparation, named

__all__ = ["check_counts", "find_folder", "prepare", "require_files"]

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")


def prepare(
    name: str,
    raw: str | Path | None,
    out: str | Path,
    *,
    counts: Counts | None = None,
    **options: Any,
) -> Dataset:
    """Build a named data set from what was downloaded.

    Args:
        name: a name of `normalis.research.datasets.DATASETS`.
        raw: folder, archive, or folder of archives; None for a generated data set.
        out: new folder; it appears when everything is there and counted.
        counts: numbers to check instead of the published ones, for a part of a data set.
        **options: of this data set, for instance ``split`` (the authors' ``data.json``) or
            ``seed``; `NamedDataset.options` lists them.

    Returns:
        The new data set, opened; its notes say what differs from the original.

    Raises:
        DataError: if the raw form is unknown, files are missing, or the counts differ.
        SettingsError: if the name or an option is unknown.
    """
    from normalis.datasets import open_dataset

    dataset, target = named(name), Path(out).expanduser()
    settings = _settings(dataset, options)
    source = _source(dataset, raw)
    notes: list[str] = []
    with new_folder(target) as folder:
        work, scratch = folder / "work", folder / "unpacked"
        work.mkdir()
        job = Preparation(
            raw=_unpack(source, scratch) if source else work,
            work=work,
            counts=counts or dataset.counts,
            put=partial(_put, ours=scratch),
            options=settings,
            notes=notes,
        )
        dataset.build(job)
        _describe(dataset, job, open_dataset(work))
        shutil.rmtree(scratch, ignore_errors=True)
        for part in list(work.iterdir()):
            part.rename(folder / part.name)
        work.rmdir()
    made = open_dataset(target)
    return Dataset(
        name=dataset.name,
        root=made.root,
        layout=made.layout,
        samples=made.samples,
        notes=(*made.notes, *notes),
    )


def check_counts(made: Dataset, counts: Counts, *, where: Path) -> None:
    """Refuse a data set whose numbers are not those that were published.

    Raises:
        DataError: naming every number that differs.
    """
    found = made.counts()
    pairs = {
        "train normal": (found.get(("train", "normal"), 0), counts.train),
        "test normal": (found.get(("test", "normal"), 0), counts.test_normal),
        "test anomalous": (found.get(("test", "anomalous"), 0), counts.test_anomalous),
    }
    wrong = [f"{k}: {a} instead of {b}" for k, (a, b) in pairs.items() if a != b]
    if wrong:
        raise DataError(
            f"{where}: the counts must be the published ones, but are not: {'; '.join(wrong)}."
            f" {' '.join(made.notes)} Is the download complete?"
        )


def find_folder(root: Path, *parts: str) -> Path | None:
    """Find the folder at or below ``root`` that holds all these files or folders, if any."""
    waiting = [root]
    for _ in range(4):  # archives nest their content by one or two folders
        for folder in waiting:
            if all((folder / part).exists() for part in parts):
                return folder
        waiting = [
            child
            for folder in waiting
            for child in sorted(folder.iterdir())
            if child.is_dir() and child.name[0] not in "._"
        ][:1000]
    return None


def require_files(wanted: Iterable[str], present: Iterable[str], *, where: Path) -> None:
    """Refuse to go on without a file that the data set needs.

    Raises:
        DataError: with the number of missing files and the first names.
    """
    wanted = list(wanted)
    missing = sorted(set(wanted) - set(present))
    if missing:
        raise DataError(
            f"{where}: {len(missing)} of the {len(wanted)} files that the split lists are missing:"
            f" {quote_some(missing)}. Is the download complete?"
        )


def _settings(dataset: NamedDataset, options: dict[str, Any]) -> dict[str, Any]:
    for option in options:
        if option not in dataset.options:
            known = ", ".join(dataset.options) or "no option"
            hint = did_you_mean(option, dataset.options)
            raise SettingsError(f"{dataset.name} knows {known}, got {option!r}{hint}")
    return {**dataset.options, **{k: v for k, v in options.items() if v is not None}}


def _source(dataset: NamedDataset, raw: str | Path | None) -> Path | None:
    if raw is None:
        if dataset.needs_raw:
            raise DataError(
                f"{dataset.name} must be downloaded first: {dataset.url or dataset.source};"
                " then give its folder or archive"
            )
        return None
    source = Path(raw).expanduser()
    if not source.exists():
        raise DataError(f"{source}: there is no such file or folder")
    return source


def _unpack(source: Path, scratch: Path) -> Path:
    """Return a folder with the content of an archive, of the archives in a folder, or the folder.

    Archives in a folder are unpacked only where the folder holds no images itself.
    """
    archives = [source]
    if source.is_dir():
        archives = sorted(f for f in source.iterdir() if f.name.lower().endswith(_ARCHIVES))
        if not archives or list_images(source).images:
            return source
    scratch.mkdir()
    for archive in archives:
        _extract(archive, scratch)
    for beside in sorted(source.iterdir()) if source.is_dir() else []:
        if beside.is_file() and beside not in archives and not (scratch / beside.name).exists():
            shutil.copyfile(beside, scratch / beside.name)
    return scratch


def _extract(archive: Path, folder: Path) -> None:
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                packed.extractall(folder)  # drops "..", drive letters and leading slashes
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as bundle:
                # The filter refuses members that would leave the folder, and devices.
                bundle.extractall(folder, filter="data")
        else:
            raise DataError(f"{archive}: must be a folder, or a zip or tar archive")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, ValueError) as error:
        raise DataError(
            f"{archive}: the archive is damaged or not allowed ({error}); download it again"
        ) from error


def _put(source: Path, target: Path, *, ours: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if ours in source.parents:
        source.replace(target)
    else:
        shutil.copyfile(source, target)


def _describe(dataset: NamedDataset, job: Preparation, made: Dataset) -> None:
    """Leave beside the images what they are, whose, and how they were prepared."""
    found = {" ".join(key): count for key, count in sorted(made.counts().items())}
    about = {
        "name": dataset.name,
        "title": dataset.title,
        "counts": found,
        "source": dataset.source,
        "licence": dataset.licence,
        "citation": dataset.citation,
        # Of a file only the name: where it lay on this machine concerns nobody else.
        "options": {k: Path(v).name if k == "split" and v else v for k, v in job.options.items()},
        "notes": job.notes,
    }
    text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
    (job.work / "about.json").write_text(text, encoding="utf-8")
