"""Camelyon16: patches of lymph node sections, normal against metastasis.

Counts: 5088 normal to train; 1120 normal and 1113 anomalous to test, 256 x 256 pixels in colour.
BMAD's copy also has ``valid/``, which is not used.

* Source: https://camelyon16.grand-challenge.org; cut into patches by BMAD.
* Licence: CC0 for the slides.
* Citation: Ehteshami Bejnordi et al., JAMA 318(22), 2017; Bao et al., *BMAD: benchmarks for
  medical anomaly detection*, CVPR workshops 2024.

``prepare`` takes the authors' archive (``Camelyon16.tar.gz``) or BMAD's folder.
"""

from __future__ import annotations

from normalis.errors import DataError
from normalis.research.datasets.catalogue import (
    MEDIANOMALY,
    Counts,
    NamedDataset,
    Preparation,
    medianomaly_url,
)
from normalis.research.datasets.splits import copy_mvtec

__all__ = ["CAMELYON16"]


def _build(job: Preparation) -> None:
    if not copy_mvtec(job):
        raise DataError(f"{job.raw}: must hold train/good, test/good and test/Ungood")


CAMELYON16 = NamedDataset(
    name="camelyon16",
    title="Camelyon16",
    modality="histopathology",
    counts=Counts(train=5088, test_normal=1120, test_anomalous=1113),
    build=_build,
    archive="Camelyon16.tar.gz",
    url=medianomaly_url("Camelyon16.tar.gz"),
    checksum="md5:c26c026d1c315deb52720d4c195e874f",
    source="https://camelyon16.grand-challenge.org",
    licence="CC0",
    citation="Ehteshami Bejnordi et al., JAMA 318(22), 2017; Bao et al., BMAD, 2024; "
    + MEDIANOMALY,
    aliases=("c16",),
)
