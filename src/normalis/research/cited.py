"""Every system that the paper cites, on the same images, beside baselines, its AE and our default.

One table, `SYSTEMS`, says what is run; what the shelves do not hold is left out and named. One
set, seed and system is one experiment (`normalis.research.experiments`), fitted, scored and
measured as every other: done once, resumable, and done in pieces by any number of commands. ::

    plan_cited -> run_cited -> normalis.research.cited_table

A system that cannot be fitted or read leaves a note in ``RESULTS/failures``, which the table shows
in place of its numbers; the next run tries it again.

``fast``, the default, trains at a high rate that falls to zero; ``effort`` shortens the training of
systems whose step costs many of the autoencoder's. A record holds the epochs that it had.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from normalis.errors import SettingsError, did_you_mean
from normalis.models import METHODS, model_class
from normalis.models.base import Autoencoder, CompositeModel
from normalis.research.data import Store
from normalis.research.experiments import Experiment, Subset
from normalis.research.jobs import jobs_of
from normalis.research.sweep import Event, run_plan
from normalis.scorers import SCORERS, default_reduction
from normalis.storage import content_hash, write_json
from normalis.training.settings import RECIPES, TrainingSettings, settings_for

__all__ = [
    "GROUPS",
    "SETS",
    "SYSTEMS",
    "System",
    "failures",
    "plan_cited",
    "published",
    "run_cited",
    "set_of",
    "system_of",
]

#: What the rows are, in the order of the table.
GROUPS = {
    "baseline": "without a network",
    "paper": "the paper's",
    "ours": "our default",
    "cited": "cited by the paper",
}
_TWIN = 0.95  # correlation from which a training image is a twin of a test image, as in the audit
_OWN = 0  # for the latent dimension: the method's own
_HELD = 0.2  # share of the normal images that a panel measures by


@dataclass(frozen=True, kw_only=True, eq=False)
class System:
    """A row of the table.

    Attributes:
        name: as it is cited.
        method: its name on the shelf of methods.
        group: a key of `GROUPS`.
        cites: number in the paper's list of references, empty for none.
        options: settings of the method other than its defaults.
        scorer: how it is read; ``native`` is as its authors do.
        scorer_options: settings of the scorer.
        latent_dims: set -> size of the bottleneck, 0 for the method's own; ``""`` of all others.
        effort: share of the recipe's epochs that it is trained for.
        learning_rate: None for the recipe's own.
        slow: whether scoring takes so long that only test images are scored.
    """

    name: str
    method: str
    group: str = "cited"
    cites: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    scorer: str = "native"
    scorer_options: Mapping[str, Any] = field(default_factory=dict)
    latent_dims: Mapping[str, int] = field(default_factory=lambda: {"": _OWN})
    effort: float = 1.0
    learning_rate: float | None = None
    slow: bool = False

    @property
    def there(self) -> bool:
        """Whether the shelves hold its method and its scorer."""
        return self.method in METHODS and self.scorer in SCORERS

    def latent_dim(self, name: str) -> int | None:
        """Return the size of the bottleneck on a set, None where the row is not of the set."""
        found = self.latent_dims.get(name, self.latent_dims.get(""))
        if found != _OWN:
            return found
        own: int = model_class(self.method).Settings.latent_dim
        return own


#: One place for all rows. [3], VoxelMorph, is a part of MorphAEus.
SYSTEMS = (
    System(name="mean image", method="mean-image", group="baseline"),
    System(name="intensity, bright", method="intensity", group="baseline"),
    System(name="intensity, dark", method="intensity", group="baseline", options={"sign": "dark"}),
    System(name="nearest normal image", method="knn", group="baseline"),
    System(name="PCA, d = 16", method="pca", group="baseline"),
    System(name="AE, d = 16", method="ae", group="paper"),
    System(
        name="AE, the paper's best d",
        method="ae",
        group="paper",
        # Table 2; of its radiographs RSNA, of its FLAIR images d = 16, the row above.
        latent_dims={"brain_tumor": 32, "brain_tumor_without_leak": 32, "kermany_cxr": 4},
    ),
    System(name="panel", method="panel", group="ours"),
    System(name="GANomaly", method="ganomaly", cites="1", learning_rate=1e-3),
    System(
        name="AE, dense, post-processed",
        method="ae-baur",
        cites="4",
        scorer="postprocessed",
        effort=0.5,
    ),
    System(
        name="AE, spatial, post-processed",
        method="ae-baur",
        cites="4",
        options={"bottleneck": "spatial"},
        scorer="postprocessed",
        effort=0.5,
    ),
    System(name="AE, dense", method="ae-baur", cites="4", effort=0.5),
    System(name="AnoVAEGAN", method="anovaegan", cites="5"),
    # Half of the epochs leave its prior a blur: at chance on kermany_cxr.
    System(name="MorphAEus", method="morphaeus", cites="6", learning_rate=1e-3),
    # Of three networks each, without unlabelled images.
    System(name="DDAD", method="ddad", cites="7, 8", options={"reading": "intra"}, effort=0.5),
    System(name="DDAD with refinement", method="ddad", cites="8", effort=0.5),
    System(name="constrained AE", method="constrained-ae", cites="10"),
    System(name="constrained adversarial AE", method="constrained-aae", cites="10"),
    System(name="VAE with restoration", method="vae", cites="11", scorer="restoration", slow=True),
    System(
        name="GMVAE with restoration",
        method="gmvae",
        cites="11",
        scorer="restoration",
        learning_rate=1e-3,
        slow=True,
    ),
    System(name="MemAE", method="memae", cites="13"),
    System(name="VAE", method="vae", cites="14"),
    System(name="HVQ-Trans", method="hvq-trans", cites="15"),
    System(name="AE-U", method="ae-u", cites="16"),
    System(
        name="VQ-VAE with transformer",
        method="vq-transformer",
        cites="19",
        effort=0.5,
        learning_rate=1e-3,
        slow=True,
    ),
    System(name="f-AnoGAN", method="f-anogan", cites="20"),
    System(name="AnoGAN", method="anogan", cites="21", slow=True),
    System(name="UniAD", method="uniad", cites="23"),
    System(name="CeAE", method="ceae", cites="24"),
    System(name="ceVAE", method="cevae", cites="24", scorer="elbo", effort=0.5),
    System(
        name="ceVAE, slope of the KL",
        method="cevae",
        cites="24",
        scorer="gradient",
        scorer_options={"form": "combi", "smoothing": 0.047},
        effort=0.5,
    ),
)

#: set -> (folder below the root, part of it)
SETS: dict[str, tuple[str, Subset]] = {
    "brain_tumor": ("brain_tumor", Subset()),
    "brain_tumor_without_leak": ("brain_tumor", Subset(drop_train_twins=_TWIN)),
    "kermany_cxr": ("kermany_cxr", Subset()),
    "lgg_flair": ("lgg_flair", Subset()),
}


@cache
def published() -> list[dict[str, str]]:
    """Return published figures: system, data, metric, value, source, grade."""
    text = files("normalis.research").joinpath("cited.json").read_text(encoding="utf-8")
    found: list[dict[str, str]] = json.loads(text)["figures"]
    return found


def _chosen(only: Sequence[str]) -> list[System]:
    """Return the systems that are asked for by their name or their method.

    Raises:
        SettingsError: if a name is none of them, or the shelves lack all of them.
    """
    known = [word for s in SYSTEMS for word in (s.name, s.method)]
    for name in only:
        if name not in known:
            hint = did_you_mean(name, known) or f"; known: {', '.join(dict.fromkeys(known))}"
            raise SettingsError(f"--only must name systems or methods, got {name!r}{hint}")
    asked = [s for s in SYSTEMS if not only or s.name in only or s.method in only]
    found = [s for s in asked if s.there]
    if not found:
        raise SettingsError(f"no shelf holds {', '.join(s.name for s in asked)}")
    return found


def plan_cited(
    store: Store,
    *,
    sets: Sequence[str] = (),
    seeds: Iterable[int] = (0, 1),
    only: Sequence[str] = (),
    recipe: str = "fast",
    epochs: int | None = None,
    effort: float = 1.0,
) -> list[Experiment]:
    """List the experiments, seed after seed, so that each seed gives a whole table.

    Args:
        store: reads the data.
        sets: keys of `SETS`, or other data sets below the root; empty for all of `SETS`.
        seeds: a training each; a method without a network has one.
        only: names of systems or methods; empty for all that the shelves hold.
        recipe: a key of `normalis.training.settings.RECIPES`.
        epochs: of every training, instead of the recipe's.
        effort: share of each row's epochs, for a quick look.

    Raises:
        SettingsError: if a system or a recipe is unknown.
    """
    if not effort > 0:
        raise SettingsError(f"--effort must be above 0, got {effort!r}")
    if recipe not in RECIPES:
        raise SettingsError(f"--recipe must be one of {', '.join(RECIPES)}, got {recipe!r}")
    chosen = _chosen(only)

    @cache
    def training(system: System, data: str) -> TrainingSettings:
        n_images = int((store.get(data).split == "train").sum())
        usual = _training(system, n_images, recipe, effort)
        return usual if epochs is None else replace(usual, epochs=epochs)

    planned = [
        _experiment(store, system, name, seed, training)
        for seed in seeds
        for name in sets or SETS
        for system in chosen
        if system.latent_dim(name) is not None
    ]
    # Without randomness a second seed is the first: one record, whichever seed asked for it.
    return list({e.identity: e for e in planned}.values())


def _experiment(
    store: Store,
    system: System,
    name: str,
    seed: int,
    training: Callable[[System, str], TrainingSettings],
) -> Experiment:
    folder, subset = SETS.get(name, (name, Subset()))
    cls = model_class(system.method)
    if issubclass(cls, CompositeModel):
        subset = replace(subset, validation_share=_HELD)
    size = cls.default_image_size(dict(system.options))
    images = {} if size == 64 else {"image_size": size}
    data, train_data = store.fingerprints(folder, images, subset)
    is_trained = issubclass(cls, Autoencoder | CompositeModel)
    return Experiment(
        dataset=folder,
        data=data,
        train_data=train_data,
        method=system.method,
        options=system.options,
        image_size=size,
        latent_dim=system.latent_dim(name),
        seed=0 if system.group == "baseline" else seed,
        training=training(system, data) if is_trained else TrainingSettings(),
        scorer=system.scorer,
        scorer_options=system.scorer_options,
        reduction=default_reduction(system.scorer),
        subset=subset,
        images=images,
        score_training=not system.slow,
    )


def _training(system: System, n_images: int, recipe: str, effort: float) -> TrainingSettings:
    rate = system.learning_rate if recipe == "fast" else None
    usual = settings_for(recipe, n_images=n_images, learning_rate=rate)  # type: ignore[arg-type]
    return replace(usual, epochs=max(1, round(effort * system.effort * usual.epochs)))


# --- doing it, and what failed ---


def run_cited(
    experiments: Sequence[Experiment],
    results: str | Path,
    *,
    callback: Callable[[Event], None] | None = None,
    **options: Any,
) -> dict[str, str]:
    """Run the experiments that have no record yet; note those that fail as soon as they do.

    Args:
        experiments: of `plan_cited`.
        results: the results folder.
        callback: as of `normalis.research.sweep.run_plan`.
        options: further arguments of it.

    Returns:
        Title -> error of what failed.
    """
    experiments_of = {job.key: job.experiments for job in jobs_of(experiments)}

    def hear(event: Event) -> None:
        for experiment in experiments_of.get(event.key, ()):
            note = _note(results, experiment)
            if event.kind == "failed":
                body = {"settings": experiment.settings(), "message": event.message}
                write_json(note, body)
            elif event.kind == "done":
                note.unlink(missing_ok=True)
        if callback:
            callback(event)

    return run_plan(experiments, results, callback=hear, **options)


def _note(results: str | Path, experiment: Experiment) -> Path:
    return Path(results) / "failures" / f"{experiment.identity}.json"


def failures(results: str | Path) -> list[dict[str, Any]]:
    """Return the notes of what failed: settings of the experiment, and the message."""
    notes = sorted((Path(results) / "failures").glob("*.json"))
    return [json.loads(note.read_text(encoding="utf-8")) for note in notes]


# --- which row a record belongs to ---


def set_of(settings: Mapping[str, Any]) -> str:
    """Return the set that an experiment's settings are of, by the name of `SETS`.

    Empty if it is another part of one, such as the middle slices of each volume, whose figures are
    of another test.
    """
    part = replace(Subset(**settings["subset"]), validation_share=0.0)
    folder = str(settings["dataset"])
    known = {(of, subset): name for name, (of, subset) in SETS.items()}
    own = "" if folder in {of for of, _ in known} or part != Subset() else folder
    return known.get((folder, part), own)


def system_of(settings: Mapping[str, Any]) -> System | None:
    """Return the system that an experiment's settings are of, None if it is of no row.

    A row is trained, read and held out as `plan_cited` plans it, but for the recipe and the epochs,
    so that records of other studies are not averaged with it.
    """
    name = set_of(settings)
    return next((s for s in SYSTEMS if name and s.there and _is_of(s, name, settings)), None)


def _is_of(system: System, name: str, settings: Mapping[str, Any]) -> bool:
    if (settings["method"], settings["scorer"]) != (system.method, system.scorer):
        return False
    mine = [dict(system.options), dict(system.scorer_options)]
    if content_hash(mine) != content_hash([settings["options"], settings["scorer_options"]]):
        return False
    if settings["latent_dim"] not in (None, system.latent_dim(name)):
        return False
    return _is_read_so(system, settings) and _is_trained_so(system, settings)


def _is_read_so(system: System, settings: Mapping[str, Any]) -> bool:
    size = model_class(system.method).default_image_size(dict(system.options))
    usual = (size, 1, default_reduction(system.scorer))
    others = {k: v for k, v in settings["images"].items() if k != "image_size"}
    asked = (settings["image_size"], settings["channels"], settings["reduction"])
    return asked == usual and not others


def _is_trained_so(system: System, settings: Mapping[str, Any]) -> bool:
    cls = model_class(system.method)
    held = _HELD if issubclass(cls, CompositeModel) else 0.0
    if settings["subset"]["validation_share"] != held:
        return False
    given = TrainingSettings(**settings["training"])
    if not issubclass(cls, Autoencoder | CompositeModel):
        return not given.standardize
    usual = _training(system, 1, given.recipe, 1.0)
    return given == replace(usual, epochs=given.epochs)
