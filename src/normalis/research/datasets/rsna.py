"""RSNA Pneumonia Detection Challenge: chest X-rays, normal against lung opacity.

Counts of the paper: 3851 normal to train; 1000 normal and 1000 with lung opacity to test, of 8851
normal and 6012 opacity images of the challenge's training set.

* Source: https://www.kaggle.com/c/rsna-pneumonia-detection-challenge (``stage_2_train_images``,
  DICOM; originals from NIH ChestX-ray14).
* Licence: the challenge's rules: non-commercial research and education, with attribution.
* Citation: Shih et al., *Augmenting the NIH chest radiograph dataset with expert annotations of
  possible pneumonia*, Radiology: AI 1(1), 2019; Wang et al., *ChestX-ray8*, CVPR 2017.

``prepare`` takes the authors' archive (``RSNA.tar.gz``), or the challenge's DICOM files with the
authors' split (``data.json`` of that archive, or ``rsna_data.json`` of their earlier DDAD code).
"""

from __future__ import annotations

from normalis.research.datasets.catalogue import (
    MEDIANOMALY,
    Counts,
    NamedDataset,
    Preparation,
    medianomaly_url,
)
from normalis.research.datasets.radiographs import dicom_to_png
from normalis.research.datasets.splits import copy_benchmark, from_split

__all__ = ["RSNA"]


def _build(job: Preparation) -> None:
    if not copy_benchmark(job):
        from_split(job, dicom_to_png)


RSNA = NamedDataset(
    name="rsna",
    title="RSNA",
    modality="chest X-ray",
    counts=Counts(train=3851, test_normal=1000, test_anomalous=1000),
    build=_build,
    archive="RSNA.tar.gz",
    url=medianomaly_url("RSNA.tar.gz"),
    checksum="md5:5d6b85ce4b2daad8f1760eb23c050a7d",
    source="https://www.kaggle.com/c/rsna-pneumonia-detection-challenge",
    licence="challenge rules: non-commercial research and education, with attribution",
    citation="Shih et al., Radiology: Artificial Intelligence 1(1), 2019; " + MEDIANOMALY,
    aliases=("rsna-pneumonia-detection-challenge",),
    options={"split": None},
)
