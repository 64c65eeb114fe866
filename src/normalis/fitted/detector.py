"""The fitted detector: what it is, how it scores, and the verbs that make another one of it."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from normalis import scoring
from normalis.backbones import offer
from normalis.calibration.colours import ColourScale
from normalis.calibration.conformal import Calibration
from normalis.calibration.findings import Finding, find_areas, highest_at_border, with_p_values
from normalis.calibration.grouped import Grouped
from normalis.calibration.maps import MapScale
from normalis.errors import (
    BackboneError,
    CalibrationWarning,
    DataError,
    NotFittedError,
    RunError,
    SettingsError,
    UntrustedError,
)
from normalis.errors.arguments import check_kind, path_of, rate_of
from normalis.errors.words import counted, verb
from normalis.fitted import recalibration, stored
from normalis.images import IntensityRule
from normalis.loading.arrays import ImageSettings, Loaded, Row, from_array, stream
from normalis.loading.held_out import (
    Images,
    as_dataset,
    image_marks,
    is_array,
    samples_to_score,
)
from normalis.loading.similar import SHOWN, SimilarImages, SimilarNormals
from normalis.loading.unlabelled import mark_learned_from
from normalis.models.base import AnomalyModel
from normalis.notebook.verbs import Verbs
from normalis.scorers.base import Scorer
from normalis.scoring import BATCH_SIZE, Detail, Scored, joined_scores
from normalis.shelf import named_by_a_file
from normalis.storage import RunFolder, content_hash
from normalis.studies.select import chosen_by
from normalis.training.loop import pick_device

if TYPE_CHECKING:
    from normalis.datasets import Dataset, Sample

__all__ = ["FittedDetector", "fitted_of"]

_MAP_SCALE = "map_scale."  # before the names of its arrays


@dataclass(frozen=True, eq=False, kw_only=True)
class FittedDetector(Verbs):
    """Trained models with all that was fixed on normal images; it scores, and is saved.

    Attributes:
        params: the detector's settings as plain values, those left to defaults as they were used.
        models: fitted and in evaluation mode; with ``cv+`` one per fold, else one. Scores, maps
            and reconstructions are their means.
        scorers: one per model.
        image_settings: how images are read.
        device: where the models are.
        rule: the intensity rule of deep images, None if all were 8-bit.
        calibration: scores of held-out normal images; None if none were held out.
        colour_scale: the one scale of all pictures, in units of calibrated maps.
        map_scale: what places of maps are measured in; None of runs from before there was one,
            whose pictures show smoothed raw maps.
        normal_scores: (n,) scores of the held-out (else of the training) normal images.
        history: losses by epoch.
        info: data, versions, durations.
        skipped: (path, reason) of normal images that could not be read.
        trained_on: a mark of each image that was trained on, so that none of them calibrates.
        unlabelled_on: a mark of each unlabelled image that the method learned from.
        grouped: calibrations within groups, None where there is one for all.
        similar: small pictures of the normal images that the model can name; None where it names
            none, or none are to be kept (``keep_similar``).
    """

    params: Mapping[str, Any]
    models: tuple[AnomalyModel, ...]
    scorers: tuple[Scorer, ...]
    image_settings: ImageSettings
    device: torch.device
    rule: IntensityRule | None = None
    calibration: Calibration | None = None
    colour_scale: ColourScale = field(default_factory=lambda: ColourScale(quiet=0.0, full=1.0))
    map_scale: MapScale | None = None
    normal_scores: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    history: Sequence[Mapping[str, float]] = ()
    info: Mapping[str, Any] = field(default_factory=dict)
    skipped: Sequence[tuple[Path, str]] = ()
    trained_on: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    unlabelled_on: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    grouped: Grouped | None = None
    similar: SimilarImages | None = None

    # --- what it is ---

    @property
    def standardize(self) -> bool:
        """Whether each image's own brightness and contrast are removed."""
        return bool(self.params["standardize"])

    @property
    def cross_fitted(self) -> bool:
        """Whether p-values are made from the scores by each model, as with ``cv+``."""
        return self.calibration is not None and self.calibration.n_models > 1

    @property
    def latent_dim(self) -> int:
        """Size of the bottleneck."""
        return int(self.models[0].settings.latent_dim)

    def _fitted(self) -> FittedDetector:
        return self

    def require_calibration(self) -> Calibration:
        """Return the calibration.

        Raises:
            NotFittedError: if there is none.
        """
        if self.calibration is None:
            raise NotFittedError(
                'p-values and thresholds need calibration="split" or "cv+", this detector was '
                'fitted with "none": calibrate it on normal images, or rank by anomaly_score'
            )
        return self.calibration

    @cached_property
    def identity(self) -> str:
        """Hash of the models, scorers and settings: equal if every score is."""
        weights = hashlib.sha256()
        for name, value in sorted(stored.model_arrays(self).items()):
            weights.update(f"{name} {value.dtype} {value.shape}".encode() + value.tobytes())
        settings = {k: v for k, v in self.params.items() if k != "device"}
        rule = self.rule.to_dict() if self.rule else None
        return content_hash({"params": settings, "rule": rule, "arrays": weights.hexdigest()})

    def member(self, number: int) -> Self:
        """Return the same with one of the models alone, without calibration."""
        model, scorer = self.models[number], self.scorers[number]
        return replace(self, models=(model,), scorers=(scorer,), calibration=None)

    def select(
        self, data: Dataset, *, progress: Callable[[int, int], None] | None = None
    ) -> Dataset:
        """Return the images of a data set that the rules of the fit select.

        Args:
            data: samples; what is left aside stands in ``aside`` of what is returned.
            progress: called as ``progress(done, total)`` while headers are read.

        Raises:
            DataError: if nothing is left.
        """
        return chosen_by(data, self.image_settings.where, progress=progress)

    # --- score ---

    def score(
        self,
        batches: Iterable[Loaded],
        *,
        maps: bool = True,
        reconstructions: bool = False,
        similar: int = 0,
    ) -> Iterator[Scored]:
        """Score batches of images that were read by `image_settings` and `rule`.

        Args:
            batches: of `normalis.loading`.
            maps: whether to compute anomaly maps.
            reconstructions: whether to return reconstructions.
            similar: how many of the most similar normal images to name of each.
        """
        marked = (mark_learned_from(batch, self.unlabelled_on) for batch in batches)
        yield from scoring.score(
            self, marked, maps=maps, reconstructions=reconstructions, similar=similar
        )

    def stream(
        self,
        samples: Sequence[Sample],
        *,
        maps: bool = True,
        reconstructions: bool = False,
        skipped: list[tuple[Path, str]] | None = None,
        need_one: bool = True,
        workers: int | None = None,
        seen: Callable[[Loaded], object] | None = None,
        similar: int = 0,
    ) -> Iterator[Scored]:
        """Score files batch after batch in constant memory; unreadable ones are skipped.

        Args:
            samples: files of a `Dataset`.
            maps: whether to compute anomaly maps.
            reconstructions: whether to return reconstructions.
            skipped: receives (path, reason) of what could not be read.
            need_one: whether it is an error if nothing can be read.
            workers: threads that read files; None means one per core.
            seen: receives each batch as it was read, for who needs the images beside the scores.
            similar: how many of the most similar normal images to name of each.

        Warns:
            CalibrationWarning: if the models were trained on some of the images.
        """
        batches = stream(
            samples,
            self.image_settings,
            rule=self.rule,
            batch_size=BATCH_SIZE,
            need_one=need_one,
            workers=workers,
        )

        known: list[Row] = []

        def noting() -> Iterator[Loaded]:
            for batch in batches:
                known.extend(self._trained_on(batch))
                if skipped is not None:
                    skipped.extend(batch.skipped)
                if seen is not None:
                    seen(batch)
                yield batch

        anything = False
        scored = self.score(noting(), maps=maps, reconstructions=reconstructions, similar=similar)
        for part in scored:
            finite, left_out = scoring.finite_only(part)
            if skipped is not None:
                skipped.extend(left_out)
            if finite.rows:
                anything = True
                yield finite
        if known:
            warnings.warn(_known_note(known, len(samples)), CalibrationWarning, stacklevel=2)
        if need_one and not anything:
            raise DataError(f"none of the {len(samples)} images has a finite score")

    def _trained_on(self, batch: Loaded) -> list[Row]:
        """Return the images that the models were trained on, pixel for pixel."""
        if not batch.rows or not self.trained_on.size:
            return []
        seen = np.isin(image_marks(batch.pixels), self.trained_on)
        return [row for row, is_known in zip(batch.rows, seen, strict=True) if is_known]

    def detail(self, samples: Sequence[Sample]) -> Iterator[Detail]:
        """Score files and yield each image at full size with its map and reconstruction.

        Args:
            samples: files of a `Dataset`; unreadable ones are left out.
        """
        yield from scoring.detail(self, samples)

    def scored(self, x: Images, *, maps: bool = True, similar: int = 0) -> list[Scored]:
        """Score images in memory, files or a data set; all of them must be readable.

        Raises:
            DataError: if an image cannot be read.
        """
        if is_array(x):
            loaded = from_array(x, self.image_settings, rule=self.rule, fit_rule=False)
            batches = scoring.batches_of(loaded, fitted=self)
            found = list(self.score(batches, maps=maps, similar=similar))
            scores = np.concatenate([part.anomaly_score for part in found])
            if not np.isfinite(scores).all():
                raise DataError(
                    f"image {int(np.argmin(np.isfinite(scores)))} has no finite score: its values "
                    "are too far from those of the training images to be computed with"
                )
            return found
        skipped: list[tuple[Path, str]] = []
        samples = samples_to_score(self.select(as_dataset(x)))
        parts = list(self.stream(samples, maps=maps, skipped=skipped, similar=similar))
        if skipped:
            path, reason = skipped[0]
            raise DataError(
                f"{len(skipped)} of the images cannot be read, and scores would no longer line up "
                f"with them; the first is {path}: {reason}. Remove them, or score the folder with "
                "`normalis score`, which skips and reports"
            )
        return parts

    def anomaly_score(self, x: Images) -> NDArray[np.float64]:
        """Return one score per image (N,), higher is more anomalous."""
        return np.concatenate([p.anomaly_score for p in self.scored(x, maps=False)])

    def anomaly_map(self, x: Images) -> NDArray[np.float32]:
        """Return one map per image (N, S, S), higher is more anomalous."""
        parts = self.scored(x)
        return np.concatenate([p.anomaly_map for p in parts if p.anomaly_map is not None])

    def similar_normals(self, x: Images, k: int = SHOWN) -> SimilarNormals:
        """Return the normal images that each image resembles most, nearest first.

        Args:
            x: N images.
            k: how many of each; fewer where the detector knows fewer.

        Raises:
            SettingsError: if the detector keeps no pictures of normal images.
        """
        check_kind("k", k, "whole")
        if k < 1:
            raise SettingsError(f"k must be at least 1, got {k}")
        kept = self.similar
        if kept is None:
            raise SettingsError(
                f"this {self.params['method']} keeps no pictures of normal images: fit a panel, "
                "spade or feature-knn with keep_similar=True"
            )
        parts = self.scored(x, maps=False, similar=k)
        places = kept.places(np.concatenate([p.similar for p in parts if p.similar is not None]))
        far = [p.similar_distance for p in parts if p.similar_distance is not None]
        return SimilarNormals(
            numbers=kept.numbers[places],
            distances=np.concatenate(far),
            pictures=kept.pixels[places],
        )

    def calibrated_map(self, x: Images) -> NDArray[np.float32]:
        """Return one calibrated map per image (N, S, S): each place judged by normal images.

        What is above ``colour_scale.quiet`` is higher than 1 in 20 normal images are anywhere
        (`normalis.calibration.maps`).
        """
        return self.calibrated(self.anomaly_map(x))

    def calibrated(self, maps: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the calibrated maps of raw ones, (S, S) or (B, S, S)."""
        if self.map_scale is None:
            return self.colour_scale.smooth(maps)
        return self.map_scale.apply(maps)

    def findings(self, x: Images) -> list[list[Finding]]:
        """Return of each image its areas above what 1 in 20 normal images reach.

        The highest comes first. An image without any has one finding, its highest place, whose
        ``above`` is False.
        """
        return [found for part in self.scored(x) for found in self.with_findings(part).findings]

    def with_findings(self, part: Scored) -> Scored:
        """Return scored images with their findings, if they have maps."""
        if part.anomaly_map is None:
            return part
        maps = self.calibrated(part.anomaly_map)
        pairs = zip(part.rows, maps, strict=True)
        found = [self._areas(row, one) for row, one in pairs]
        return replace(part, findings=found, at_border=highest_at_border(part.anomaly_map))

    def _areas(self, row: Row, calibrated: NDArray[np.float32]) -> list[Finding]:
        areas = find_areas(
            calibrated,
            self.colour_scale.quiet,
            shape=row.original_shape,
            spacing=row.header.get("spacing_mm"),
        )
        if self.calibration is None or self.map_scale is None or not areas:
            return areas
        return with_p_values(areas, self.calibration.map_p_values([a.peak for a in areas]))

    def p_value(self, x: Images) -> NDArray[np.float64]:
        """Return the share of normal images that score at least as high, (N,) in (0, 1].

        Raises:
            NotFittedError: if there is no calibration.
        """
        self.require_calibration()
        parts = self.scored(x, maps=False)
        return self.p_values_of(joined_scores(parts), self.groups_of(parts))

    def groups_of(self, parts: Sequence[Scored]) -> list[Any]:
        """Return the group of each image; None where its header does not say."""
        by = self.grouped.by if self.grouped else ""
        return [row.header.get(by) for part in parts for row in part.rows]

    def p_values_of(
        self, scores: NDArray[np.float64], groups: Sequence[Any]
    ) -> NDArray[np.float64]:
        """Return the p-values of scores, within groups where the calibration is one of groups.

        Args:
            scores: (N,), or what `normalis.scoring.joined_scores` makes of folds and panels.
            groups: (N,) of `groups_of`.

        Returns:
            (N,), NaN of images whose group nothing calibrates.

        Raises:
            NotFittedError: if there is no calibration.
        """
        calibration = self.require_calibration()
        if self.grouped is None:
            return calibration.p_values(scores)
        return self.grouped.p_values(scores, groups)

    def flags_of(
        self, p_values: NDArray[np.float64], groups: Sequence[Any], rate: float
    ) -> NDArray[np.bool_] | None:
        """Return which images are flagged at a rate; None if too few normals certify it.

        Args:
            p_values: (N,) of `p_values_of`.
            groups: (N,) of `groups_of`; of one that cannot certify the rate no image is flagged.
            rate: false-positive rate.
        """
        if self.grouped is not None:
            return self.grouped.flags(p_values, groups, rate)
        calibration = self.require_calibration()
        if not calibration.certifies_rate(rate):
            return None
        return calibration.flags(p_values, rate)

    def threshold(self, rate: float) -> float:
        """Return the score above which an image is flagged at a false-positive rate.

        Raises:
            NotFittedError: if there is no calibration.
            SettingsError: if too few normals certify the rate; with ``cv+``, whose models have no
                common scale; if the calibration is one of groups, each of which has its own.
        """
        return self.require_one_calibration().threshold(rate)

    def require_one_calibration(self) -> Calibration:
        """Return the calibration that all images share.

        Raises:
            NotFittedError: if there is none.
            SettingsError: if there is one for each group.
        """
        if self.grouped is not None:
            raise SettingsError(
                f"each {self.grouped.by} is calibrated by its own normal images, so that no one "
                "threshold serves all: ask p_value or predict, or one of grouped.groups"
            )
        return self.require_calibration()

    def predict(self, x: Images, *, fpr: float | None = None) -> NDArray[np.int64]:
        """Return 1 for images that are flagged, 0 for others.

        Args:
            x: images.
            fpr: share of normal patients that may be flagged; None for the setting of the fit.

        Raises:
            NotFittedError: if there is no calibration.
            SettingsError: if too few normal images were held out to certify the rate.
        """
        calibration, rate = self.require_calibration(), self.params["fpr"] if fpr is None else fpr
        calibration.check_rate(rate_of("fpr", rate))
        parts = self.scored(x, maps=False)
        groups = self.groups_of(parts)
        flags = self.flags_of(self.p_values_of(joined_scores(parts), groups), groups, rate)
        assert flags is not None  # the rate was checked above
        return flags.astype(np.int64)

    # --- the same models, read or calibrated otherwise ---

    def calibrate(
        self,
        normals: Images,
        *,
        patient_ids: Sequence[str | None] | None = None,
        by: str | None = None,
    ) -> Self:
        """Return the same models calibrated on other normal images, without training.

        The promise is the one of ``calibration="split"``, exact for images of the kind of
        ``normals``, whatever the models were trained on: the models have seen none of them.

        Args:
            normals: as for `AnomalyDetector.fit`; images that the models were not trained on.
            patient_ids: (N,) for arrays.
            by: column of the manifest, or header field, that names groups such as ``scanner``:
                each group then has p-values of its own (`normalis.calibration.grouped`).

        Raises:
            DataError: if there is no readable image, or some of them were trained on.
            SettingsError: if no image has a value of ``by``.

        Warns:
            CalibrationWarning: of unknown patients, and if few units calibrate, or few of a group.
        """
        check_kind("by", by, "text?")
        return recalibration.calibrated(self, normals, patient_ids=patient_ids, by=by)

    def with_scorer(
        self,
        scorer: str,
        normals: Images,
        *,
        patient_ids: Sequence[str | None] | None = None,
        reduction: str | None = None,
        scorer_options: Mapping[str, Any] | None = None,
    ) -> Self:
        """Return the same models read by another scorer.

        Args:
            scorer: a name from `normalis.scorers.SCORERS`.
            normals: the images of the fit. Those held out then are found again, and give the new
                scores their p-values and pictures their colours.
            patient_ids: (N,) for arrays, those of the fit.
            reduction: how a map becomes one number; None for the scorer's own.
            scorer_options: further settings of the scorer.

        Raises:
            DataError: if the images, or their patients, are not those of the fit.
            SettingsError: if the scorer cannot read the models, or with ``cv+`` if they have been
                calibrated elsewhere.
        """
        check_kind("scorer", scorer, "text")
        check_kind("reduction", reduction, "text?")
        check_kind("scorer_options", scorer_options, "options?")
        return recalibration.read_by(
            self,
            normals,
            patient_ids=patient_ids,
            scorer=scorer,
            reduction=reduction,
            options=scorer_options,
        )

    # --- save and load ---

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a run folder without pickles; return its path.

        Raises:
            RunError: if the folder holds something already, or cannot be written.
        """
        folder = RunFolder(path_of("path", path))
        folder.check_writable(overwrite=overwrite)
        with folder.locked():
            self.write(folder)
        return folder.path

    def write(self, folder: RunFolder) -> None:
        """Write into a run folder whose lock the caller holds."""
        stored.write(self, folder)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        trust: bool = False,
        backbone: str | Path | None = None,
    ) -> Self:
        """Read a run folder; nothing that its files name is imported or run.

        Args:
            path: the folder that ``fit`` or `save` wrote.
            device: where to score, whatever the device it was fitted on.
            trust: whether a method, scorer or network that the folder names as ``module:Class``
                may be imported, which runs that code. Methods of this package and of installed
                packages need no trust.
            backbone: file of the feature network that the run was fitted with, where it is a file
                of the user's that lies elsewhere now, or TorchScript.

        Raises:
            RunError: if a file is missing, damaged or was edited.
            UntrustedError: if the folder names code of its own and ``trust`` is False.
            BackboneError: if the feature network that it needs is absent or another one.
        """
        if backbone is not None:
            offer(backbone)
        folder, place = RunFolder(path_of("path", path)), pick_device(device)
        body, arrays = folder.read_settings(), folder.read_arrays()
        try:
            with named_by_a_file(folder.path / folder.SETTINGS, trust=trust):
                stored.check_stored(body, arrays)
                found = stored.restore(cls, body, arrays, device, place)
                stored.check_used(found, arrays)
                return found
        except (UntrustedError, BackboneError):
            raise
        except (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError,
                ValueError) as error:  # fmt: skip
            raise RunError(f"{path}: is damaged ({error}); fit the model again") from error


def fitted_of(detector: Any) -> FittedDetector:
    """Return what was fitted, of an `AnomalyDetector` or of a `FittedDetector` itself.

    Raises:
        NotFittedError: if nothing was.
    """
    found = getattr(detector, "fitted_", detector)
    if not isinstance(found, FittedDetector):
        raise NotFittedError(f"this {type(found).__name__} must be fitted first: call fit or load")
    return found


def _known_note(known: Sequence[Row], n_files: int) -> str:
    names = list(dict.fromkeys(row.path.name for row in known))
    some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return (
        f"{counted(len(names), 'file')} of the {n_files} scored "
        f"{verb(len(names), 'holds', 'hold')} images that the model was trained on "
        f"({some}): their scores are lower than those of new images, and their p-values larger"
    )
