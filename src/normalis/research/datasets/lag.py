"""LAG: fundus photographs, normal against glaucoma.

Counts of the authors' archive: 1500 normal to train; 811 normal and 811 with glaucoma to test.

* Source: https://github.com/smilell/AG-CNN (on request; with a password).
* Licence: academic use only; the original must not be uploaded again.
* Citation: Li et al., *Attention based glaucoma detection: a large-scale database and CNN model*,
  CVPR 2019.

``prepare`` takes the authors' archive (``LAG.tar.gz``), or the original's images with the split.
"""

from __future__ import annotations

from normalis.research.datasets.catalogue import (
    MEDIANOMALY,
    Counts,
    NamedDataset,
    Preparation,
    medianomaly_url,
)
from normalis.research.datasets.splits import copy_benchmark, from_split

__all__ = ["LAG"]


def _build(job: Preparation) -> None:
    if not copy_benchmark(job):
        from_split(job)


LAG = NamedDataset(
    name="lag",
    title="LAG",
    modality="fundus photograph",
    counts=Counts(train=1500, test_normal=811, test_anomalous=811),
    build=_build,
    archive="LAG.tar.gz",
    url=medianomaly_url("LAG.tar.gz"),
    checksum="md5:0b4034ae8d5275f7723a512adb218f86",
    source="https://github.com/smilell/AG-CNN",
    licence="academic use only",
    citation="Li et al., CVPR 2019; " + MEDIANOMALY,
    options={"split": None},
)
