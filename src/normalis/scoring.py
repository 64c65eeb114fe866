"""A fitted model and a stream of images to anomaly maps and scores, in constant memory.

Images arrive in batches from `normalis.loading.arrays.stream`, whose workers decode the next ones
while the model works on these, on a CPU one batch per thread. Nothing is kept: memory does not
grow with the number of images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby, islice, repeat
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normalis.calibration.findings import Finding
from normalis.datasets import Sample
from normalis.errors import DataError, UnreadableImageError
from normalis.images import Frame, IntensityRule, read_frames
from normalis.images.ahead import map_ahead
from normalis.loading.arrays import ImageSettings, Loaded, Row, load, to_unit
from normalis.models.base import AnomalyModel, CompositeModel
from normalis.models.inputs import FLAT, as_tensor, to_model_input
from normalis.scorers.base import Scorer

__all__ = [
    "BATCH_SIZE",
    "Detail",
    "Fitted",
    "Scored",
    "batches_of",
    "detail",
    "finite_only",
    "from_model_range",
    "image_statistics",
    "joined_scores",
    "score",
    "score_loaded",
    "score_pixels",
]

#: Images scored at once: large enough for full speed, small enough for any machine.
BATCH_SIZE = 64


@dataclass(frozen=True, eq=False, kw_only=True)
class Scored:
    """What a batch of images scored.

    Attributes:
        rows: where each image came from.
        anomaly_score: (B,), higher is more anomalous.
        anomaly_map: (B, S, S) float32, None if not asked for.
        reconstruction: (B, C, S, S) float32 in the model's range, None if not asked for or if the
            method has none.
        statistics: name -> (B,) of the images themselves, to notice that new data have drifted.
        by_fold: (F, B) scores by each model of a cross-fitted detector, whose mean is
            ``anomaly_score``; None for one model.
        findings: of each image, by `normalis.fitted.FittedDetector.with_findings`; empty if not
            asked for.
        at_border: (B,) whether the raw map's highest place lies in the outer 5 % of the image;
            None if not asked for.
        readings: (V, B) of a panel, which ``anomaly_score`` is made of; None for other methods.
        similar: (B, k) the most similar normal images as the model numbers them, nearest first;
            None if not asked for or if the method names none.
        similar_distance: (B, k) their distances; None likewise.
    """

    rows: list[Row]
    anomaly_score: NDArray[np.float64]
    anomaly_map: NDArray[np.float32] | None = None
    reconstruction: NDArray[np.float32] | None = None
    statistics: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    by_fold: NDArray[np.float64] | None = None
    findings: list[list[Finding]] = field(default_factory=list)
    at_border: NDArray[np.bool_] | None = None
    readings: NDArray[np.float64] | None = None
    similar: NDArray[np.int64] | None = None
    similar_distance: NDArray[np.float64] | None = None


def image_statistics(pixels: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """Return the mean and the standard deviation of each image (B, C, S, S), by name."""
    unit = to_unit(pixels).reshape(len(pixels), -1).astype(np.float64)
    return {"mean intensity": unit.mean(1), "contrast": unit.std(1)}


class Fitted(Protocol):
    """What scoring needs of a fitted detector (`normalis.fitted.FittedDetector`)."""

    @property
    def models(self) -> Sequence[AnomalyModel]:
        """Fitted, usually one; scores, maps and reconstructions are their means."""

    @property
    def scorers(self) -> Sequence[Scorer]:
        """One per model."""

    @property
    def image_settings(self) -> ImageSettings:
        """How images are read."""

    @property
    def rule(self) -> IntensityRule | None:
        """The fitted intensity rule."""

    @property
    def standardize(self) -> bool:
        """Whether each image's own brightness and contrast are removed."""

    @property
    def device(self) -> torch.device:
        """Where the models are."""

    @property
    def cross_fitted(self) -> bool:
        """Whether p-values are made from the scores by each model."""

    def member(self, number: int) -> Fitted:
        """Return the same with one of the models alone."""


@torch.inference_mode()
def score_pixels(
    fitted: Fitted,
    pixels: NDArray[Any],
    *,
    maps: bool = True,
    reconstructions: bool = False,
    volumes: Sequence[int] = (),
) -> tuple[NDArray[np.float64], NDArray[np.float32] | None, NDArray[np.float32] | None]:
    """Score one batch of pixels by every model of a detector.

    Args:
        fitted: models with their scorers; in evaluation mode.
        pixels: (B, C, S, S) ``uint8`` or float with nominal range [0, 1].
        maps: whether to return anomaly maps.
        reconstructions: whether to return reconstructions.
        volumes: how many images in a row are slices of one file, for scorers that join them.

    Returns:
        scores (F, B) by each model, of a panel its readings (V, B); maps (B, S, S) and
        reconstructions (B, C, S, S), averaged over the models, each None if not asked for or if
        the method has none.
    """
    x = to_model_input(as_tensor(pixels).to(fitted.device), standardize=fitted.standardize)
    x = x.contiguous(memory_format=torch.channels_last)
    scores, shown, rebuilt = [], [], []
    for model, scorer in zip(fitted.models, fitted.scorers, strict=True):
        if isinstance(model, CompositeModel):
            readings, joined = model.read(x)
            again = model.reconstruct(x) if reconstructions else None
            return readings.cpu().numpy(), _array(joined) if maps else None, _array(again)
        score, anomaly_map = (
            scorer.read_volumes(model, x, volumes, maps=maps)
            if volumes
            else scorer.read(model, x, maps=maps)
        )
        scores.append(score.double().cpu().numpy())
        shown.append(_array(anomaly_map))
        rebuilt.append(_array(scorer.reference(model, x) if reconstructions else None))
    return np.stack(scores), _mean(shown), _mean(rebuilt)


@torch.inference_mode()
def _similar(
    fitted: Fitted, pixels: NDArray[Any], k: int
) -> tuple[NDArray[np.int64] | None, NDArray[np.float64] | None]:
    """Return numbers and distances (B, k) by the first model; a network's pass is shared."""
    find, found = getattr(fitted.models[0], "similar", None), []
    if find is None:
        return None, None
    for start in range(0, len(pixels), BATCH_SIZE):
        some = as_tensor(pixels[start : start + BATCH_SIZE]).to(fitted.device)
        x = to_model_input(some, standardize=fitted.standardize)
        found.append(find(x.contiguous(memory_format=torch.channels_last), k))
    if not found or found[0] is None:
        return None, None
    numbers, distances = (torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True))
    return numbers.astype(np.int64), distances.astype(np.float64)


def _array(tensor: Tensor | None) -> NDArray[np.float32] | None:
    return None if tensor is None else tensor.float().cpu().numpy()


def _mean(parts: Sequence[NDArray[np.float32] | None]) -> NDArray[np.float32] | None:
    there = [part for part in parts if part is not None]
    if len(there) < 2:
        return there[0] if there else None
    found: NDArray[np.float32] | None = np.mean(there, axis=0, dtype=np.float32)
    return found


def score(
    fitted: Fitted,
    batches: Iterable[Loaded],
    *,
    maps: bool = True,
    reconstructions: bool = False,
    similar: int = 0,
) -> Iterator[Scored]:
    """Score batch after batch; see `score_pixels` for the arguments.

    Args:
        fitted: as there.
        batches: of images.
        maps: as there.
        reconstructions: as there.
        similar: how many of the most similar normal images to name; 0 looks for none.
    """
    panel = fitted.models[0] if isinstance(fitted.models[0], CompositeModel) else None

    def scored(batch: Loaded) -> Scored:
        scores, shown, rebuilt = _in_pieces(
            fitted, batch, maps=maps, reconstructions=reconstructions
        )
        named = _similar(fitted, batch.pixels, similar) if similar else (None, None)
        return Scored(
            rows=list(batch.rows),
            anomaly_score=panel.surprise(scores) if panel else scores.mean(axis=0),
            anomaly_map=shown,
            reconstruction=rebuilt,
            statistics=image_statistics(batch.pixels),
            by_fold=scores if fitted.cross_fitted else None,
            readings=scores if panel else None,
            similar=named[0],
            similar_distance=named[1],
        )

    filled = (batch for batch in batches if batch.rows)
    yield from _in_threads(scored, filled) if fitted.device.type == "cpu" else map(scored, filled)


def score_loaded(fitted: Fitted, loaded: Loaded, *, maps: bool = True) -> Iterator[Scored]:
    """Score images in memory, batch after batch; see `score`."""
    yield from score(fitted, batches_of(loaded, fitted=fitted), maps=maps)


def batches_of(
    loaded: Loaded, size: int = BATCH_SIZE, *, fitted: Fitted | None = None
) -> Iterator[Loaded]:
    """Cut images in memory into batches of a size.

    Args:
        loaded: the images.
        size: of a batch.
        fitted: what they are for; if it joins the slices of a volume, none is cut.
    """
    n = len(loaded.rows)
    cuts = list(range(0, n, size))
    if fitted is not None and _joins_slices(fitted):
        ends = np.cumsum([0, *_volumes(loaded.rows)])
        cuts = sorted({int(ends[np.searchsorted(ends, cut)]) for cut in cuts} - {n})
    for start, stop in zip(cuts, [*cuts[1:], n], strict=True):
        yield Loaded(
            pixels=loaded.pixels[start:stop],
            rows=loaded.rows[start:stop],
            skipped=[],
            rule=loaded.rule,
        )


def _in_pieces(
    fitted: Fitted, batch: Loaded, *, maps: bool, reconstructions: bool
) -> tuple[NDArray[np.float64], NDArray[np.float32] | None, NDArray[np.float32] | None]:
    """Score a batch that a volume made larger than `BATCH_SIZE` in several passes.

    A scorer that joins slices gets whole volumes, and passes them on in pieces itself.
    """
    pixels = batch.pixels
    score = partial(score_pixels, fitted, maps=maps, reconstructions=reconstructions)
    if _joins_slices(fitted):
        return score(pixels, volumes=_volumes(batch.rows))
    starts = range(0, len(pixels), BATCH_SIZE)
    parts = [score(pixels[s : s + BATCH_SIZE]) for s in starts]
    scores, shown, rebuilt = zip(*parts, strict=True)
    return np.concatenate(scores, axis=1), _joined(shown), _joined(rebuilt)


def _joins_slices(fitted: Fitted) -> bool:
    return any(scorer.joins_slices for scorer in fitted.scorers)


def _volumes(rows: Sequence[Row]) -> list[int]:
    """Return how many rows in a row are of one file of slices; 1 for each other image."""
    lengths: list[int] = []
    for i, row in enumerate(rows):
        follows = i > 0 and row.slice_index is not None and row.sample == rows[i - 1].sample
        if follows:
            lengths[-1] += 1
        else:
            lengths.append(1)
    return lengths


def _joined(parts: Sequence[NDArray[np.float32] | None]) -> NDArray[np.float32] | None:
    there = [part for part in parts if part is not None]
    if len(there) < 2:
        return there[0] if there else None
    return np.concatenate(there)


def finite_only(part: Scored) -> tuple[Scored, list[tuple[Path, str]]]:
    """Leave out files of which an image has no finite score or map.

    Returns:
        The rest, and (path, reason) of what was left out. A file of several images is left out
        whole.
    """
    bad = ~np.isfinite(part.anomaly_score)
    if part.anomaly_map is not None:
        bad |= ~np.isfinite(part.anomaly_map).reshape(len(bad), -1).all(axis=1)
    if not bad.any():
        return part, []
    reasons: dict[Sample, tuple[Path, str]] = {}
    for row, is_bad, value in zip(part.rows, bad, part.anomaly_score, strict=True):
        if is_bad:
            which = "" if row.slice_index is None else f" of slice {row.slice_index}"
            reason = (
                f"its score{which} is {value:g}, or its map not finite: its values are too far "
                "from those of the training images to be computed with"
            )
            reasons.setdefault(row.sample, (row.path, reason))
    kept = np.array([row.sample not in reasons for row in part.rows], np.bool_)
    rest = replace(
        part,
        rows=[row for row, keep in zip(part.rows, kept, strict=True) if keep],
        anomaly_score=part.anomaly_score[kept],
        anomaly_map=None if part.anomaly_map is None else part.anomaly_map[kept],
        reconstruction=None if part.reconstruction is None else part.reconstruction[kept],
        statistics={name: values[kept] for name, values in part.statistics.items()},
        by_fold=None if part.by_fold is None else part.by_fold[:, kept],
        readings=None if part.readings is None else part.readings[:, kept],
        similar=None if part.similar is None else part.similar[kept],
        similar_distance=None if part.similar_distance is None else part.similar_distance[kept],
    )
    return rest, list(reasons.values())


def _in_threads(scored: Callable[[Loaded], Scored], batches: Iterable[Loaded]) -> Iterator[Scored]:
    """Score a batch per thread, in order, each thread computing alone.

    The threads of one operation wait for each other at its end. Beside decoders on the same cores
    they mostly wait, which took six times the processor time (docs/reference/performance.md,
    Scoring).
    """
    threads = torch.get_num_threads()

    def alone(batch: Loaded) -> tuple[Scored, int]:
        torch.set_num_threads(1)  # of the thread that calls it
        return scored(batch), 2 * batch.pixels.nbytes  # maps are about as large as images

    try:
        workers = min(16, threads)
        parts = map_ahead(alone, batches, workers=workers, ahead=2, weigh=lambda part: part[1])
        yield from (part for part, _ in parts)
    finally:
        torch.set_num_threads(threads)  # threads that others start later ask what was set last


def joined_scores(parts: Sequence[Scored]) -> NDArray[np.float64]:
    """Return what `Calibration.p_values` reads: scores (N,).

    Of a cross-fitted detector (F, N) by each model, of a panel its readings (V, N).
    """
    several = [part.by_fold if part.readings is None else part.readings for part in parts]
    by_fold = [part for part in several if part is not None]
    return np.concatenate(by_fold or [part.anomaly_score for part in parts], axis=-1)


@dataclass(frozen=True, eq=False, kw_only=True)
class Detail:
    """One image with what the model makes of it, for a picture.

    Attributes:
        row: where the image came from.
        original: (C, H, W) with nominal range [0, 1], at the image's own geometry.
        anomaly_score: its score.
        anomaly_map: (S, S).
        reconstruction: (C, S, S) with nominal range [0, 1]; None if the method has none.
    """

    row: Row
    original: NDArray[np.float32]
    anomaly_score: float
    anomaly_map: NDArray[np.float32]
    reconstruction: NDArray[np.float32] | None


def detail(fitted: Fitted, samples: Sequence[Sample]) -> Iterator[Detail]:
    """Score files and yield each image at full size with its map and reconstruction.

    Args:
        fitted: a fitted detector.
        samples: the files; unreadable ones are left out.
    """
    settings, rule = fitted.image_settings, fitted.rule
    for start in range(0, len(samples), BATCH_SIZE):
        chosen = samples[start : start + BATCH_SIZE]
        try:
            loaded = load(chosen, settings, rule=rule, fit_rule=False)
        except DataError:  # all of these vanished, or were damaged, since they were listed
            continue
        originals, done = _originals(loaded.rows, settings, rule), 0
        for part in score(fitted, batches_of(loaded, fitted=fitted), reconstructions=True):
            unit = to_unit(loaded.pixels[done : done + len(part.rows)])
            yield from _details(part, unit, originals, fitted.standardize)
            done += len(part.rows)


def _details(
    part: Scored,
    unit: NDArray[np.float32],
    originals: Iterator[NDArray[np.float32] | None],
    standardize: bool,
) -> Iterator[Detail]:
    maps, rebuilt = part.anomaly_map, part.reconstruction
    if rebuilt is not None:
        rebuilt = from_model_range(rebuilt, unit, standardize=standardize)
    # rows comes first: when it is used up, zip takes nothing more from originals.
    for i, (row, original) in enumerate(zip(part.rows, originals, strict=False)):
        yield Detail(
            row=row,
            original=unit[i] if original is None else original,
            anomaly_score=float(part.anomaly_score[i]),
            anomaly_map=np.zeros(unit.shape[2:], np.float32) if maps is None else maps[i],
            reconstruction=None if rebuilt is None else rebuilt[i],
        )


def _originals(
    rows: Sequence[Row], settings: ImageSettings, rule: IntensityRule | None
) -> Iterator[NDArray[np.float32] | None]:
    """Yield the pixels of each row at the image's own geometry; None for rows of array files."""
    for sample, group in groupby(rows, key=lambda row: row.sample):
        wanted = list(group)
        if sample.index is not None:
            yield from (None for _ in wanted)
            continue
        given = 0
        with suppress(UnreadableImageError):  # it was readable a moment ago
            for frame in islice(_frames(sample, settings, rule), len(wanted)):
                yield _shown(frame.pixels, rule)
                given += 1
        yield from repeat(None, len(wanted) - given)


def _frames(sample: Sample, settings: ImageSettings, rule: IntensityRule | None) -> Iterator[Frame]:
    """Read a file in the units in which the rule is stated."""
    return read_frames(
        sample.path,
        plane=settings.plane,
        slice_range=settings.slice_range,
        voi=rule is None or rule.voi,
    )


def _shown(pixels: NDArray[Any], rule: IntensityRule | None) -> NDArray[np.float32]:
    if pixels.dtype == np.uint8 or rule is None:
        return to_unit(pixels)
    return rule.apply(pixels)


def from_model_range(
    x_hat: NDArray[np.float32], unit: NDArray[np.float32], *, standardize: bool
) -> NDArray[np.float32]:
    """Bring a reconstruction back to the range [0, 1] of the image that it belongs to.

    Args:
        x_hat: (B, C, S, S) in the model's range.
        unit: (B, C, S, S) the images in [0, 1].
        standardize: whether the model saw standardised images.
    """
    if not standardize:
        return np.asarray((x_hat + 1) / 2, np.float32)
    axes = (1, 2, 3)
    spread = np.maximum(unit.std(axes, keepdims=True), FLAT)
    return np.asarray(x_hat * 2 * spread + unit.mean(axes, keepdims=True), np.float32)
