"""A fitted detector and a labelled data set -> the evaluation.

Scores the test images once, lets the audit say which of them leak and which belong together, puts
the baseline scores beside, and hands all to `normalis.evaluation`. Labels are used here and nowhere
before.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from normalis import baselines
from normalis.audit import Audit, audit
from normalis.audit.findings import all_alike
from normalis.audit.inventory import image_key
from normalis.calibration.colours import ColourScale
from normalis.errors import DataError
from normalis.errors.arguments import rate_of
from normalis.errors.words import counted, verb
from normalis.evaluation import Evaluation, baseline_scores, evaluate
from normalis.fitted import fitted_of
from normalis.images.decoding import decoded_once
from normalis.loading.arrays import ImageSettings, Loaded, Row, load, load_masks, to_unit
from normalis.loading.given import as_dataset
from normalis.loading.held_out import image_marks
from normalis.loading.marked import marked_normals
from normalis.loading.units import some
from normalis.loading.unlabelled import LEARNED_FROM
from normalis.scoring import joined_scores

if TYPE_CHECKING:
    from pathlib import Path

    from normalis.datasets import Dataset, Sample
    from normalis.detector import AnomalyDetector
    from normalis.fitted import FittedDetector
    from normalis.images.decoding import Recipe
    from normalis.scoring import Scored

__all__ = ["evaluate_detector"]

_log = logging.getLogger("normalis.evaluation")

_AUDITED = 64  # pixels a side, at which the audit compares all images
_THRESHOLDS = (0.95, 0.999)
_MOST_DEMOGRAPHICS = ("age", "sex", "scanner", "manufacturer", "model")


def evaluate_detector(
    detector: AnomalyDetector | FittedDetector,
    data: Dataset | str | Path,
    *,
    fpr: float = 0.05,
    progress: Callable[[str, float], None] | None = None,
) -> tuple[Evaluation, Audit, list[tuple[Path, str]]]:
    """Evaluate a detector on the test split of a data set.

    Args:
        detector: fitted.
        data: with labelled test images; a data set, or a folder or file that is one. Where nothing
            says which images are for training, all labelled ones are test images.
        fpr: nominal false-positive rate of the deployable figures.
        progress: called with the stage and the share of it that is done.

    Returns:
        The evaluation, the audit of the data, and (path, reason) of images that were skipped.

    Raises:
        DataError: if the data set has no labelled test images, or the detector was trained on most
            of the normal ones.
    """
    tell = progress or (lambda stage, share: None)
    fitted, fpr = fitted_of(detector), rate_of("fpr", fpr)
    data = as_dataset(data).to_evaluate()
    samples = _labelled(data)
    _log.info("evaluating on %d labelled test files of %s", len(samples), data.name)
    skipped: list[tuple[Path, str]] = []
    read: list[Loaded] = []
    with decoded_once(*_recipes(fitted)):
        parts = _score(fitted, samples, skipped, tell, with_maps=data.has_masks, read=read)
        found = audit(data, image_size=_AUDITED, progress=tell)
        train = _training_images(fitted, data)
    rows = [row for part in parts for row in part.rows]
    maps = _maps(parts)
    keys = [image_key(row.sample, row.slice_index) for row in rows]
    tell("metrics", 0.0)
    notes: list[str] = []
    masks = _masks(rows, fitted.image_settings.image_size, notes) if data.has_masks else None
    if masks is None and (marked := marked_normals(samples)):
        notes.append(f"Labelled normal, with marked pixels: {counted(len(marked), 'image')}.")
    labels = _labels(rows, masks, notes)
    leaked = _leaked(found, keys) | {
        "unlabelled": _learned_from(rows, notes),
        "trained": _trained_on(fitted, read, keys, labels, notes),
    }
    result = evaluate(
        np.concatenate([part.anomaly_score for part in parts]),
        labels,
        groups=[found.groups.get(key, f"image {i}") for i, key in enumerate(keys)],
        leaked=leaked,
        baselines=_baselines(train, read, found, keys),
        kind=[row.kind if bad else None for row, bad in zip(rows, labels, strict=True)],
        maps=maps,
        masks=masks if maps is not None else None,
        header=_demographics(rows),
        **_deployed(fitted, parts, fpr, notes),
        **_shown(fitted, maps, fpr),
    )
    tell("metrics", 1.0)
    noted = dataclasses.replace(result, notes=(*notes, *result.notes))
    return _with_notes(noted, fitted, fpr), found, skipped


def _maps(parts: Sequence[Scored]) -> NDArray[np.float32] | None:
    """Return the maps (N, S, S), None where none were asked for."""
    shown = [part.anomaly_map for part in parts if part.anomaly_map is not None]
    return np.concatenate(shown) if shown else None


def _recipes(fitted: FittedDetector) -> tuple[Recipe, Recipe]:
    """Return how an image is read, for its score or the baselines, and for the audit."""
    voi = fitted.rule is None or fitted.rule.voi
    return fitted.image_settings.recipe(voi=voi), ImageSettings(image_size=_AUDITED).recipe(voi=voi)


def _training_images(fitted: FittedDetector, data: Dataset) -> NDArray[Any] | None:
    """Return the training images as the detector reads them; None where the data have none."""
    if not data.split("train"):
        return None
    return load(data.split("train"), fitted.image_settings, rule=fitted.rule, fit_rule=False).pixels


def _masks(rows: Sequence[Row], image_size: int, notes: list[str]) -> NDArray[np.bool_]:
    return load_masks(rows, image_size=image_size, notes=notes)


def _labels(
    rows: Sequence[Row], masks: NDArray[np.bool_] | None, notes: list[str]
) -> NDArray[np.bool_]:
    """Return the label of each image: of slices by their masks, where their file has any.

    A volume is anomalous as a whole; a slice of it without a lesion is not.
    """
    labels = np.array([bool(row.is_anomalous) for row in rows])
    in_file = labels & np.array([row.slice_index is not None for row in rows])
    known = in_file & np.array([row.mask is not None for row in rows])
    if masks is not None and known.any():
        bare = known & ~masks.any(axis=(1, 2))
        labels &= ~bare
        notes.append(
            f"{bare.sum()} of {known.sum()} slices of anomalous files have no marked pixel and "
            "count as normal; the others as anomalous."
        )
    if (unknown := int((in_file & ~known).sum())) and masks is not None:
        notes.append(
            f"{unknown} slices of anomalous files without a mask all count as anomalous, with or "
            "without a lesion."
        )
    elif unknown:
        notes.append(
            f"All {unknown} slices of anomalous files count as anomalous, though a lesion may be "
            "in a few of them: no masks tell them apart."
        )
    return labels


def _learned_from(rows: Sequence[Row], notes: list[str]) -> NDArray[np.bool_]:
    """Return which images the method learned from unlabelled; note how many and some names."""
    known = np.array([LEARNED_FROM in row.header for row in rows], dtype=bool)
    if known.any():
        names = some([row.path.name for row in rows if LEARNED_FROM in row.header])
        notes.append(
            f"{int(known.sum())} of {counted(len(rows), 'test image')} were among the unlabelled "
            f"ones that the method learned from ({names}): take the figures without unlabelled."
        )
    return known


def _trained_on(
    fitted: FittedDetector,
    read: Sequence[Loaded],
    keys: Sequence[str],
    labels: NDArray[np.bool_],
    notes: list[str],
) -> NDArray[np.bool_]:
    """Return which test images the detector was trained on, pixel for pixel; note how many.

    Raises:
        DataError: if these are most of the normal ones: they say nothing of new images.
    """
    known = {
        image_key(row.sample, row.slice_index)
        for batch in read
        for row, is_known in zip(
            batch.rows, np.isin(image_marks(batch.pixels), fitted.trained_on), strict=True
        )
        if is_known
    }
    found = _listed(keys, frozenset(known))
    normal = int((found & ~labels).sum()), int((~labels).sum())
    if 2 * normal[0] > normal[1]:
        raise DataError(
            f"the run was trained on {normal[0]} of the {counted(normal[1], 'image')} that "
            f"{verb(normal[1], 'counts', 'count')} as normal here, which says nothing of new "
            "images: keep some normal images from `fit`, in test/ beside train/ or in a table with "
            "the column split, and fit again"
        )
    if found.any():
        notes.append(
            f"The run was trained on {int(found.sum())} of {counted(len(keys), 'test image')}: "
            "take the figures without trained."
        )
    return found


def _labelled(data: Dataset) -> tuple[Sample, ...]:
    samples = tuple(s for s in data.split("test") if s.is_anomalous is not None)
    if not samples:
        raise DataError(
            f"{data.root}: must have labelled test images to evaluate on, has none (layout: "
            f"{data.layout}; found {data.said_counts()}); put them in test/good "
            "and test/KIND, name the normal one of folders of classes (--normal-class), or "
            "give a table with the columns path, label and split"
        )
    return samples


def _score(
    detector: FittedDetector,
    samples: Sequence[Sample],
    skipped: list[tuple[Path, str]],
    tell: Callable[[str, float], None],
    *,
    with_maps: bool,
    read: list[Loaded],
) -> list[Scored]:
    """Score the test images; ``read`` receives them as the detector reads them."""
    parts: list[Scored] = []
    done = 0
    for part in detector.stream(samples, maps=with_maps, skipped=skipped, seen=read.append):
        parts.append(part)
        done += len(part.rows)
        tell("scores", min(1.0, done / len(samples)))
    if not parts:
        raise DataError(f"no test image can be read; the first reason: {skipped[0][1]}")
    return parts


def _leaked(found: Audit, keys: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """Return which images leak, by the threshold of likeness that says so."""
    return {
        f"{t}": _listed(keys, found.leaked(t))
        for t in _THRESHOLDS
        if not (t == min(_THRESHOLDS) and all_alike(found))
    }


def _listed(keys: Sequence[str], listed: frozenset[str]) -> NDArray[np.bool_]:
    return np.array([key in listed for key in keys])


def _baselines(
    train: NDArray[Any] | None,
    read: Sequence[Loaded],
    found: Audit,
    keys: Sequence[str],
) -> dict[str, NDArray[np.float64]]:
    """Return the baselines of the test images, from the images as the detector has read them."""
    place = {
        image_key(row.sample, row.slice_index): (batch.pixels, i)
        for batch in read
        for i, row in enumerate(batch.rows)
    }
    one_kind = len({batch.pixels.dtype for batch in read}) == 1  # 8 bit in all files, or in none
    chosen = [place[key] for key in keys]
    pixels = np.stack([(x if one_kind else to_unit(x))[i] for x, i in chosen])
    known = {fact.key: fact.properties for fact in found.facts}
    properties = [known.get(key, {}) for key in keys]
    if train is None:
        return _without_training(pixels, properties)
    return baseline_scores(train, pixels, file_properties=properties)


def _without_training(
    pixels: NDArray[Any], properties: Sequence[Mapping[str, Any]]
) -> dict[str, NDArray[np.float64]]:
    """Return the baseline scores that need no training images, for data that hold tests alone."""
    both = {
        "mean_intensity": baselines.mean_intensity(pixels),
        "contrast": baselines.contrast(pixels),
        **baselines.property_scores(properties),
    }
    return both | {f"{name}_reversed": -values for name, values in both.items()}


def _demographics(rows: Sequence[Row]) -> dict[str, list[Any]]:
    columns = {}
    for name in _MOST_DEMOGRAPHICS:
        values = [row.header.get(name) for row in rows]
        if any(value is not None for value in values):
            columns[name] = values
    return columns


def _deployed(
    fitted: FittedDetector, parts: Sequence[Scored], fpr: float, notes: list[str]
) -> dict[str, Any]:
    """Return flags, as far as the calibration can certify them; note which groups it cannot."""
    if fitted.calibration is None:
        return {}
    groups = fitted.groups_of(parts)
    if fitted.grouped is not None:
        notes += fitted.grouped.too_few(fpr, groups)
    flagged = fitted.flags_of(fitted.p_values_of(joined_scores(parts), groups), groups, fpr)
    return {} if flagged is None else {"flagged": flagged, "rate": fpr}


def _with_notes(result: Evaluation, fitted: FittedDetector, fpr: float) -> Evaluation:
    """Say so where the level of maps is no promise."""
    calibration = fitted.calibration
    if not result.coloured or calibration is None:
        return result
    if calibration.n_models > 1:
        why = "the models of cv+ have no common scale"
    elif fpr < calibration.smallest_rate:
        why = f"{calibration.n_units} held-out units are too few"
    else:
        return result
    note = (
        f"{why} to promise a level of maps at {fpr:.0%}: it is the one that about this share of "
        "the held-out images exceed"
    )
    return dataclasses.replace(result, notes=(*result.notes, note))


def _shown(fitted: FittedDetector, maps: NDArray[np.float32] | None, fpr: float) -> dict[str, Any]:
    """Return calibrated maps, and the level above which they colour a share of normal images."""
    calibration = fitted.calibration
    if maps is None or calibration is None or calibration.map_maxima is None:
        return {}
    # Of runs from before there was a map scale both are of raw maps.
    level = ColourScale.from_maxima(calibration.map_maxima, fpr, unit=calibration.unit).quiet
    return {
        "calibrated": None if fitted.map_scale is None else fitted.calibrated(maps),
        "map_level": level,
    }
