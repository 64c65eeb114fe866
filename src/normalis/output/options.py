"""What ``score`` is asked to write, and what it says that it wrote."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normalis.engines.cluster import Cluster
from normalis.errors import SettingsError

__all__ = ["ENGINES", "ScoreOptions", "ScoreSummary"]

#: What computes scores; the first is the default.
ENGINES = ("torch", "onnx", "ray")


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """What ``score`` writes.

    Args:
        maps: whether to write anomaly maps.
        overlays: whether to write pictures.
        all_overlays: pictures of every image even beyond `MANY`.
        fpr: share of normal patients that may be flagged.
        fdr: flag patients so that at most this share of those flagged is normal, instead.
        engine: what computes the scores: ``torch``, ``onnx`` (on CPUs) or ``ray`` (PyTorch on a
            cluster, `normalis.engines.ray_scoring`).
        cluster: of the engine ``ray``.
        overwrite: whether a finished scoring in the folder may be replaced, once the new one is
            complete, and an interrupted one of something else be dropped.
        similar: whether to write the most similar normal images, where the run keeps pictures.
        relative_paths: whether tables name files relative to the scored folder, which tells
            nobody where the images lie; else as they were given, which other tables join by.
        pseudonyms: file of a key by which patients, accession numbers and UIDs in tables are
            replaced (`normalis.output.pseudonyms`); None leaves them as they are.
    """

    maps: bool = True
    overlays: bool = True
    all_overlays: bool = False
    fpr: float = 0.05
    fdr: float | None = None
    engine: str = "torch"
    cluster: Cluster = field(default_factory=Cluster)
    overwrite: bool = False
    relative_paths: bool = False
    pseudonyms: Path | None = None
    similar: bool = True

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise SettingsError(f"engine must be one of {', '.join(ENGINES)}, got {self.engine!r}")
        if self.fdr is not None and not 0 < self.fdr < 1:
            raise SettingsError(f"fdr must be in (0, 1), got {self.fdr}")


@dataclass(frozen=True, kw_only=True)
class ScoreSummary:
    """What was written.

    Attributes:
        images: images scored.
        skipped: images that could not be read.
        flagged: images above the threshold; None without calibration, or with too few held-out
            normals to certify the rate.
        top: the most anomalous rows, as written to scores.csv.
        drift: sentences on how the images differ from the calibration's normals; empty if not.
        folder: where.
        patients: the rows of patients.csv.
    """

    images: int
    skipped: int
    flagged: int | None
    top: list[dict[str, Any]]
    drift: list[str]
    folder: Path
    patients: list[tuple[Any, ...]] = field(default_factory=list)
