"""Brain Tumor MRI: slices without tumour against glioma and meningioma.

Counts of the paper: 1000 normal to train; 600 normal and 600 anomalous (300 glioma, 300
meningioma) to test. Pituitary tumours of the original are not used.

* Source: https://www.kaggle.com/datasets/masoudnickparvar/brain-tumor-mri-dataset (``Training`` and
  ``Testing``, each with ``glioma``, ``meningioma``, ``notumor``, ``pituitary``).
* Licence: CC0 as stated on Kaggle; compiled from figshare (CC BY 4.0), SARTAJ and Br35H (unclear).
* Citation: Nickparvar, *Brain Tumor MRI dataset*, Kaggle 2021, doi:10.34740/KAGGLE/DSV/2645886.

The paper's text says 250 epochs for every data set; its code trains this one for 600.

``prepare`` takes the authors' archive (``BrainTumor.tar.gz``), or Kaggle's folders with the
authors' split (``data.json`` of that archive).
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

__all__ = ["BRAIN_TUMOR"]


def _build(job: Preparation) -> None:
    if not copy_benchmark(job):
        from_split(job)


BRAIN_TUMOR = NamedDataset(
    name="brain_tumor",
    title="Brain Tumor",
    modality="brain MRI",
    counts=Counts(train=1000, test_normal=600, test_anomalous=600),
    build=_build,
    epochs=600,
    archive="BrainTumor.tar.gz",
    url=medianomaly_url("BrainTumor.tar.gz"),
    checksum="md5:ab6482f646262fc4669b0135d80a0482",
    source="https://www.kaggle.com/datasets/masoudnickparvar/brain-tumor-mri-dataset",
    licence="CC0 as stated on Kaggle; parts CC BY 4.0, parts unclear",
    citation="Nickparvar, Kaggle 2021, doi:10.34740/KAGGLE/DSV/2645886; " + MEDIANOMALY,
    aliases=("braintumor", "brain"),
    options={"split": None},
)
