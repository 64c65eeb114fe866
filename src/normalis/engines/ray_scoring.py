"""Scoring of an archive on Ray: parts of it by the machines of a cluster, the same output folder.

::

    samples -> parts of `PART` files -> on workers: decode, score, write maps -> scores
            -> here: note each part once, then p-values, pictures and tables

Every node must see the images and the output folder under the same paths. The fitted model lies in
the output folder meanwhile, as the files of a run, and each worker process reads it once.

A part whose worker or node is lost is given to another one. Its rows are noted here, when it is
done, hence once; a map that the lost worker had written is written again with the same bytes.
Pictures are drawn here in the end: the most anomalous images are known only then.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from normalis.engines.cluster import Cluster, cause_of
from normalis.errors import DataError, RunError

if TYPE_CHECKING:
    from normalis.datasets import Sample
    from normalis.fitted import FittedDetector
    from normalis.loading.arrays import Row
    from normalis.scoring import Scored

    #: Scores without maps, and (path, reason) of what could not be read.
    _Part = tuple[list[Scored], list[tuple[Path, str]]]

__all__ = ["PART", "stream_on_ray"]

#: Files of one part: seconds of work, so that Ray's milliseconds do not count and little is lost
#: with a worker. A multiple of `normalis.scoring.BATCH_SIZE`, so that batches are those of one
#: process.
PART = 512
#: Parts under way for each worker: one in work, one waiting.
_AHEAD = 2


class _MapFiles(Protocol):
    """Where maps are written; it travels to the workers."""

    def write_maps(self, rows: Sequence[Row], maps: NDArray[np.float32]) -> None:
        """Write the maps (n, S, S) of n images."""


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What all parts have in common, as plain values; paths are absolute."""

    model: str
    device: str
    maps: _MapFiles | None
    threads: int
    similar: int = 0


@lru_cache(maxsize=1)
def _detector(model: str, device: str) -> FittedDetector:
    from normalis.fitted import FittedDetector

    # Written a moment ago by whoever started this, from a detector that they had loaded.
    return FittedDetector.load(model, device=device, trust=True)


def _score_part(samples: Sequence[Sample], task: _Task) -> _Part:
    """Score some files on a worker; return the scores without maps, and what was skipped."""
    import torch

    torch.set_num_threads(task.threads)
    detector = _detector(task.model, task.device)
    skipped: list[tuple[Path, str]] = []
    parts = []
    for part in detector.stream(
        samples,
        maps=task.maps is not None,
        skipped=skipped,
        need_one=False,
        workers=task.threads,
        similar=task.similar,
    ):
        if task.maps is not None and part.anomaly_map is not None:
            task.maps.write_maps(part.rows, part.anomaly_map)
        parts.append(replace(detector.with_findings(part), anomaly_map=None))
    return parts, skipped


def stream_on_ray(
    detector: FittedDetector,
    samples: Sequence[Sample],
    files: _MapFiles,
    *,
    cluster: Cluster,
    model: Path,
    maps: bool,
    skipped: list[tuple[Path, str]],
    need_one: bool = True,
    similar: int = 0,
) -> Iterator[Scored]:
    """Score files on a cluster; yield parts in the order in which they are done.

    Args:
        detector: fitted.
        samples: the files.
        files: where the workers write maps, absolute; what is yielded has none.
        cluster: where to compute.
        model: folder that holds the model meanwhile.
        maps: whether to write maps.
        skipped: receives (path, reason) of what could not be read.
        need_one: whether it is an error if nothing can be read.
        similar: how many of the most similar normal images to name of each.

    Raises:
        MissingExtraError: if Ray is not installed.
        RunError: if there is no cluster at the address, or a part failed.
        DataError: if no sample is readable and ``need_one``.
    """
    with cluster.joined() as ray:
        detector.save(model, overwrite=True)
        task = _Task(
            model=str(_absolute(model)),
            device=detector.params["device"],
            maps=files if maps else None,
            threads=cluster.threads,
            similar=similar,
        )
        for parts, unread in _results(ray, cluster, samples, task):
            skipped.extend(unread)
            need_one = need_one and not parts
            yield from parts
    if need_one:
        path, reason = skipped[0]
        raise DataError(f"none of the {len(samples)} images is readable. {path}: {reason}")


def _results(ray: Any, cluster: Cluster, samples: Sequence[Sample], task: _Task) -> Iterator[_Part]:
    """Keep every worker busy with a part or two; yield what comes back."""
    score = cluster.task(ray, _score_part)
    under_way = _AHEAD * cluster.slots(ray)
    parts = (samples[start : start + PART] for start in range(0, len(samples), PART))
    pending: dict[Any, Sequence[Sample]] = {}
    while True:
        for part in islice(parts, under_way - len(pending)):
            # Workers may have another working folder.
            pending[score.remote([_located(sample) for sample in part], task)] = part
        if not pending:
            return
        done, _ = ray.wait(list(pending))
        for reference in done:
            try:
                result = ray.get(reference)
            except ray.exceptions.RayError as error:
                raise RunError(
                    f"a part of the images could not be scored on a worker: {cause_of(error)}. "
                    "What was scored is kept; run the same command again"
                ) from error
            yield _as_given(result, pending.pop(reference))


def _absolute(path: Path) -> Path:
    # Not resolved: names in the output are those of the links that lead to a file.
    return Path(os.path.abspath(path))  # noqa: PTH100


def _located(sample: Sample) -> Sample:
    return replace(sample, path=_absolute(sample.path))


def _as_given(result: _Part, samples: Sequence[Sample]) -> _Part:
    """Name files as the caller did."""
    parts, skipped = result
    given = {_located(sample): sample for sample in samples}
    paths = {known.path: sample.path for known, sample in given.items()}
    named = [
        replace(
            part,
            rows=[
                replace(row, sample=given[row.sample], path=given[row.sample].path)
                for row in part.rows
            ],
        )
        for part in parts
    ]
    return named, [(paths[path], reason) for path, reason in skipped]
