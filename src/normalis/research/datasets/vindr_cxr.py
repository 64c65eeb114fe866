"""VinDr-CXR: chest X-rays, normal against 14 kinds of findings.

Counts of the paper: 4000 normal to train; 1000 normal and 1000 anomalous to test, of 10606 normal
and 4394 anomalous images of the challenge's training set.

* Source: https://www.kaggle.com/c/vinbigdata-chest-xray-abnormalities-detection (``train``, files
  named ``*.dicom``, some compressed: install the extra ``codecs``).
* Licence: PhysioNet Credentialed Health Data License 1.5.0 for the original; the challenge's rules
  for its copy: non-commercial research and education.
* Citation: Nguyen et al., *VinDr-CXR: an open dataset of chest X-rays with radiologist's
  annotations*, Scientific Data 9:429, 2022.

``prepare`` takes the authors' archive (``VinCXR.tar.gz``), or the challenge's DICOM files with the
authors' split (``data.json`` of that archive, or ``vin_data.json`` of their earlier DDAD code).
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

__all__ = ["VINDR_CXR"]


def _build(job: Preparation) -> None:
    if not copy_benchmark(job):
        from_split(job, dicom_to_png)


VINDR_CXR = NamedDataset(
    name="vindr_cxr",
    title="VinDr-CXR",
    modality="chest X-ray",
    counts=Counts(train=4000, test_normal=1000, test_anomalous=1000),
    build=_build,
    archive="VinCXR.tar.gz",
    url=medianomaly_url("VinCXR.tar.gz"),
    checksum="md5:45cf848a4eba925062531c5f2d344ddc",
    source="https://www.kaggle.com/c/vinbigdata-chest-xray-abnormalities-detection",
    licence="PhysioNet Credentialed Health Data License 1.5.0; challenge rules for its copy",
    citation="Nguyen et al., Scientific Data 9:429, 2022; " + MEDIANOMALY,
    aliases=("vincxr", "vindr", "vin", "vinbigdata-chest-xray-abnormalities-detection"),
    options={"split": None},
)
