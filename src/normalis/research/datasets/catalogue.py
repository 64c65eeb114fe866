"""What is known of a data set that has a name: counts, source, licence, how it is prepared."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normalis.errors import SettingsError, did_you_mean

__all__ = ["MEDIANOMALY", "Counts", "NamedDataset", "Preparation", "medianomaly_url", "named"]

MEDIANOMALY = (
    "Cai, Zhang, Chen, Cheng: MedIAnomaly: a comparative study of anomaly detection in medical"
    " images. Medical Image Analysis (2025), arXiv:2404.04518"
)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Images of a data set: normal ones to train, normal and anomalous ones to test."""

    train: int
    test_normal: int
    test_anomalous: int


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What a data set's ``build`` works on.

    Attributes:
        raw: folder of what the user downloaded, with archives unpacked.
        work: empty folder to fill with the canonical layout.
        counts: how many images there must be.
        put: ``put(source, target)`` copies a file, or moves it where it was unpacked for us.
        options: settings of this preparation: ``split``, ``seed``, ...
        notes: to be filled with what the user should know.
    """

    raw: Path
    work: Path
    counts: Counts
    put: Callable[[Path, Path], None]
    options: Mapping[str, Any]
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class NamedDataset:
    """A data set that is known by name.

    Attributes:
        name: as in tables and folder names.
        title: as in the paper's tables.
        modality: what the images are.
        counts: exact numbers of images.
        build: fills the canonical layout; see `Preparation`.
        epochs: of training, where the data set differs from the default.
        archive: file name of the authors' prepared archive, None where there is none.
        url: where that archive is, None where there is none.
        checksum: of the archive, ``algorithm:digest``, None where none is published.
        source: where the original images come from.
        licence: of the original images; read it before redistributing.
        citation: what to cite.
        aliases: other names of it, for instance of the archive's folder.
        options: options of ``build`` with their defaults.
        needs_raw: False for a data set that is generated.
    """

    name: str
    title: str
    modality: str
    counts: Counts
    build: Callable[[Preparation], None]
    epochs: int = 250
    archive: str | None = None
    url: str | None = None
    checksum: str | None = None
    source: str
    licence: str
    citation: str
    aliases: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    needs_raw: bool = True


def medianomaly_url(archive: str) -> str:
    """Return the address of one of the archives that the authors of MedIAnomaly prepared."""
    return f"https://zenodo.org/api/records/12677223/files/{archive}/content"


def named(name: str) -> NamedDataset:
    """Return the data set of this name or alias; case, ``-`` and ``_`` do not matter.

    Raises:
        SettingsError: if there is none; the message lists the names.
    """
    from normalis.research.datasets import DATASETS

    for listed in DATASETS:
        dataset: NamedDataset = DATASETS.load(listed)
        if _key(name) in map(_key, (dataset.name, *dataset.aliases)):
            return dataset
    hint = did_you_mean(name, DATASETS)
    raise SettingsError(f"the data set must be one of {', '.join(DATASETS)}, got {name!r}{hint}")


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
