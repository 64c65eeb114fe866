"""ISIC 2018, task 3: photographs of skin lesions, naevi against all other diagnoses.

Counts: 6705 naevi (``NV``) of the challenge's training set to train; 909 naevi and 603 others of
its test set to test. The training images of the other diagnoses are not used.

* Source: https://challenge.isic-archive.com/data/#2018 (task 3: training and test input and ground
  truth, four archives).
* Licence: CC BY-NC 4.0.
* Citation: Codella et al., arXiv:1902.03368; Tschandl et al., *The HAM10000 dataset*, Scientific
  Data 5:180161, 2018.

``prepare`` takes the folder with the four archives, or with what they hold, in the challenge's
names: ``ISIC2018_Task3_{Training,Test}_{Input,GroundTruth}``.
"""

from __future__ import annotations

import csv
from pathlib import Path

from normalis.datasets.listing import list_images
from normalis.errors import DataError
from normalis.research.datasets.catalogue import MEDIANOMALY, Counts, NamedDataset, Preparation
from normalis.research.datasets.preparing import find_folder, require_files
from normalis.research.datasets.splits import Lists, copy_benchmark, write_benchmark

__all__ = ["ISIC2018"]

_NORMAL = "NV"


def _build(job: Preparation) -> None:
    if copy_benchmark(job):
        return
    parts = [
        f"ISIC2018_Task3_{s}_{t}" for s in ("Training", "Test") for t in ("Input", "GroundTruth")
    ]
    root = find_folder(job.raw, *parts)
    if root is None:
        raise DataError(
            f"{job.raw}: must hold {', '.join(parts)}, as folders or archives,"
            " or images/ and data.json"
        )
    lists: Lists = {}
    for split, stage in (("train", "Training"), ("test", "Test")):
        normal, other = _diagnoses(root / f"ISIC2018_Task3_{stage}_GroundTruth")
        lists[split, "0"] = normal
        if split == "test":
            lists[split, "1"] = other
        _collect(job, root / f"ISIC2018_Task3_{stage}_Input", lists, split)
    write_benchmark(job, lists)


def _diagnoses(folder: Path) -> tuple[list[str], list[str]]:
    """Read which images are naevi and which are not."""
    tables = sorted(folder.glob("*GroundTruth.csv"))
    if len(tables) != 1:
        raise DataError(f"{folder}: must hold one *GroundTruth.csv, found {len(tables)}")
    normal: list[str] = []
    other: list[str] = []
    with tables[0].open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        if not {"image", _NORMAL} <= set(reader.fieldnames or ()):
            raise DataError(f"{tables[0]}, line 1: must name the columns image and {_NORMAL}")
        for row in reader:
            (normal if float(row[_NORMAL]) == 1 else other).append(row["image"] + ".jpg")
    return sorted(normal), sorted(other)


def _collect(job: Preparation, folder: Path, lists: Lists, split: str) -> None:
    files = {image.name: image for image in list_images(folder).images}
    names = [name for (part, _), names in lists.items() if part == split for name in names]
    require_files(names, files, where=folder)
    for name in names:
        job.put(files[name], job.work / "images" / name)


ISIC2018 = NamedDataset(
    name="isic2018",
    title="ISIC2018",
    modality="dermatoscopy",
    counts=Counts(train=6705, test_normal=909, test_anomalous=603),
    build=_build,
    source="https://challenge.isic-archive.com/data/#2018",
    licence="CC BY-NC 4.0",
    citation="Codella et al., arXiv:1902.03368; Tschandl et al., Sci. Data 5, 2018; " + MEDIANOMALY,
    aliases=("isic", "ISIC2018_Task3"),
)
