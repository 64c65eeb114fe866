"""Data sets that are known by name, and how each is prepared; one file each."""

from __future__ import annotations

import importlib
from typing import Any

from normalis.shelf import Shelf

__all__ = ["DATASETS", "download_archive", "named", "prepare"]

DATASETS = Shelf(
    "data set",
    {
        "phantom": "normalis.research.datasets.phantom:PHANTOM",
        "rsna": "normalis.research.datasets.rsna:RSNA",
        "vindr_cxr": "normalis.research.datasets.vindr_cxr:VINDR_CXR",
        "brain_tumor": "normalis.research.datasets.brain_tumor:BRAIN_TUMOR",
        "brats2021": "normalis.research.datasets.brats2021:BRATS2021",
        "lag": "normalis.research.datasets.lag:LAG",
        "isic2018": "normalis.research.datasets.isic2018:ISIC2018",
        "camelyon16": "normalis.research.datasets.camelyon16:CAMELYON16",
    },
)

_LAZY = {
    "download_archive": "normalis.research.datasets.download",
    "named": "normalis.research.datasets.catalogue",
    "prepare": "normalis.research.datasets.preparing",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
