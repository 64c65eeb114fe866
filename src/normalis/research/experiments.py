"""What an experiment is, and how a plan lists experiments before any of them starts.

An **experiment** is data × method × latent dimension × seed, read by one scorer. Its *identity* is
the hash of all its settings, whether at their defaults or not: equal settings are the same
experiment, whichever plan asks for it, and a default may change without a record changing its
meaning. The folder that the data came from is not part of it, the data's own fingerprint is. A
setting that is added changes every identity; `normalis.research.rekey` names records anew.

A **training** is an experiment without its scorer, its data set's name and its test images;
experiments that share one are trained once (`Experiment.training_key`).

A **plan** is a TOML file. Every list is a factor, the product of all factors is run, and each
``[[sweep.include]]`` block adds the product of the table with its own entries in place of those
above::

    [sweep]
    datasets = ["brain_tumor", "kermany_cxr"]
    methods = ["ae"]
    latent_dims = [4, 16]
    seeds = [0, 1, 2]

    [[sweep.include]]
    methods = ["vae"]
    latent_dims = [16]
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from normalis.errors import NormalisError, SettingsError, did_you_mean
from normalis.models import model_class
from normalis.scorers import default_reduction, scorer_class
from normalis.storage import content_hash, write_json
from normalis.training.settings import TrainingSettings

__all__ = ["Experiment", "Subset", "default_epochs", "expand", "plan", "read_plan", "write_plan"]


def default_epochs(dataset: str) -> int:
    """Return the epochs that a data set is trained for unless a plan says otherwise."""
    from normalis.research.datasets.catalogue import named

    try:
        return named(dataset.split("/")[0]).epochs
    except SettingsError:  # a data set of the user's own
        return TrainingSettings.epochs


@dataclass(frozen=True, kw_only=True)
class Subset:
    """Which images of a data set take part; by default all, as in the paper.

    Args:
        drop_train_twins: leave out training images whose normalised cross-correlation with a test
            image is at least this; None keeps all.
        drop_test_twins: the same the other way round.
        deduplicate_train: leave out training images that resemble an earlier one as much.
        position: relative position (low, high) of a test slice in its volume, bounds excluded.
        validation_share: share of the training normals held out of training, by patient.
        train_limit: largest number of training images, drawn with a fixed seed.
    """

    drop_train_twins: float | None = None
    drop_test_twins: float | None = None
    deduplicate_train: float | None = None
    position: tuple[float, float] | None = None
    validation_share: float = 0.0
    train_limit: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.validation_share < 1:
            raise SettingsError(f"validation_share must be in [0, 1), got {self.validation_share}")
        if self.train_limit is not None and self.train_limit < 2:
            raise SettingsError(f"train_limit must be at least 2, got {self.train_limit}")
        if self.position is not None:
            object.__setattr__(self, "position", tuple(self.position))


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment; two with equal settings are the same.

    Args:
        dataset: name of the data set, for tables.
        data: fingerprint of all arrays that were used.
        train_data: fingerprint of the training images alone.
        method: name of a method.
        options: the method's own settings other than its defaults, ``image_size``, ``channels``.
        image_size: side of the square images.
        channels: 1 or 3.
        latent_dim: size of the bottleneck; None for a method without one.
        seed: of weights, batches and noise.
        training: how it is trained; what means nothing to the method is at its default.
        scorer: how the fitted model is read.
        scorer_options: the scorer's own settings.
        reduction: how a map becomes one number.
        subset: which images take part.
        images: how images are read, other than the defaults.
        score_training: whether images that were trained on are scored as well; no part of the
            identity. A record without holds NaN for them.
    """

    dataset: str
    data: str
    train_data: str
    method: str = "ae"
    options: Mapping[str, Any] = field(default_factory=dict)
    image_size: int = 64
    channels: int = 1
    latent_dim: int | None = 16
    seed: int = 0
    training: TrainingSettings = field(default_factory=TrainingSettings)
    scorer: str = "native"
    scorer_options: Mapping[str, Any] = field(default_factory=dict)
    reduction: str = "mean"
    subset: Subset = field(default_factory=Subset)
    images: Mapping[str, Any] = field(default_factory=dict)
    score_training: bool = True

    def __post_init__(self) -> None:
        cls = model_class(self.method)
        if not cls.has_latent:
            object.__setattr__(self, "latent_dim", None)
        elif self.latent_dim is None:
            object.__setattr__(self, "latent_dim", 16)
        if not self.is_trained:
            kept = TrainingSettings(standardize=self.training.standardize)
            object.__setattr__(self, "training", kept)
        for name, kind in (("options", cls), ("scorer_options", scorer_class(self.scorer))):
            fixed = self.model_options if name == "options" else {"reduction": self.reduction}
            given = getattr(self, name)
            settings = kind.Settings.from_mapping({**fixed, **given})
            changed = _changed(settings, sorted(given.keys() - fixed.keys()))
            object.__setattr__(self, name, changed)

    @property
    def model_options(self) -> dict[str, Any]:
        """Return what every method is built from."""
        size: dict[str, Any] = {"image_size": self.image_size, "channels": self.channels}
        return size if self.latent_dim is None else {**size, "latent_dim": self.latent_dim}

    @cached_property
    def model(self) -> dict[str, Any]:
        """Return every setting of the method."""
        cls = model_class(self.method)
        return _whole(cls.Settings.from_mapping({**self.model_options, **self.options}))

    @cached_property
    def reading(self) -> dict[str, Any]:
        """Return every setting of the scorer."""
        options = {**self.scorer_options, "reduction": self.reduction}
        return _whole(scorer_class(self.scorer).Settings.from_mapping(options))

    @property
    def key(self) -> dict[str, Any]:
        """Return what the identity is the hash of.

        ``images`` and ``subset`` act through the arrays, which the fingerprint covers.
        """
        more = {"dataset": self.dataset, "data": self.data, "scorer": self.scorer}
        return {**self.training_body(), **more, "reading": self.reading}

    @cached_property
    def identity(self) -> str:
        """Return the experiment's name among all experiments."""
        return content_hash(self.key)

    @cached_property
    def training_key(self) -> str:
        """Return the name of the training that the experiment shares with others."""
        return content_hash(self.training_body())

    def training_body(self) -> dict[str, Any]:
        """Return what the training's key is the hash of."""
        training = _whole(self.training)
        if not self.is_trained:  # how long, in what steps: means nothing to it
            training = {"standardize": self.training.standardize}
        return {
            "train_data": self.train_data,
            "method": self.method,
            "model": dict(self.model),
            "seed": self.seed,
            "training": training,
        }

    @property
    def is_trained(self) -> bool:
        """Whether the method, or a member of it, is trained by steps, as an autoencoder is."""
        from normalis.models.base import Autoencoder, CompositeModel

        return issubclass(model_class(self.method), Autoencoder | CompositeModel)

    def settings(self) -> dict[str, Any]:
        """Return every setting as plain values, defaults included.

        ``model`` and ``reading`` are all settings of the method and of the scorer; ``options`` and
        ``scorer_options`` those of them that are not at today's defaults, for listings.
        """
        body = {f.name: getattr(self, f.name) for f in fields(self)}
        parts = {"training": asdict(self.training), "subset": asdict(self.subset)}
        plain = {k: dict(body[k]) for k in ("options", "scorer_options", "images")}
        return {**body, **parts, **plain, "model": dict(self.model), "reading": dict(self.reading)}

    @classmethod
    def from_settings(cls, body: Mapping[str, Any]) -> Experiment:
        """Return the experiment that `settings` described, by whichever version.

        A setting that the version did not have is at its default.

        Raises:
            SettingsError: if the method or the scorer has no such setting any more.
        """
        parts = dict(body)
        parts["training"] = TrainingSettings(**parts["training"])
        parts["subset"] = Subset(**parts["subset"])
        model, reading = parts.pop("model", None), parts.pop("reading", None)
        if model is not None:
            fixed = ("image_size", "channels", "latent_dim")
            parts["options"] = {k: v for k, v in model.items() if k not in fixed}
        if reading is not None:
            parts["scorer_options"] = {k: v for k, v in reading.items() if k != "reduction"}
        return cls(**parts)

    def __str__(self) -> str:
        """Return one line for a listing."""
        latent = "" if self.latent_dim is None else f" d={self.latent_dim}"
        extra = "".join(f" {k}={v}" for k, v in self.options.items())
        plain = {f.name: f.default for f in fields(Subset)}
        extra += "".join(f" {k}={v}" for k, v in asdict(self.subset).items() if v != plain[k])
        usual = {f.name: f.default for f in fields(TrainingSettings) if f.name != "epochs"}
        changed = {k: v for k, v in asdict(self.training).items() if v != usual.get(k, v)}
        extra += " standardize" if changed.pop("standardize", False) else ""
        extra += "".join(f" {k}={v}" for k, v in changed.items())
        read = (
            ""
            if (self.scorer, self.reduction) == ("native", default_reduction("native"))
            else (f" [{self.scorer}, {self.reduction}]")
        )
        epochs = f" epochs={self.training.epochs}"
        return f"{self.dataset} {self.method}{latent}{extra} seed={self.seed}{epochs}{read}"


def _changed(settings: Any, names: Iterable[str]) -> dict[str, Any]:
    """Return those of the named settings that are not at their defaults."""
    try:
        defaults = vars(type(settings)())
    except SettingsError:  # one of them has to be given, such as a file of weights
        defaults = {f.name: f.default for f in fields(settings)}
    return {n: v for n in names if (v := getattr(settings, n)) != defaults[n]}


def _whole(settings: Any) -> dict[str, Any]:
    """Return all settings as plain values; what is no whole number by default is written as 1.0."""
    body = {k: v.tolist() if hasattr(v, "tolist") else v for k, v in asdict(settings).items()}
    floats = [f.name for f in fields(settings) if isinstance(f.default, float)]
    return body | {name: float(body[name]) for name in floats if body[name] is not None}


# Factor of a plan -> (field of an experiment, what one value may be).
_FACTORS = {
    "datasets": "dataset",
    "methods": "method",
    "latent_dims": "latent_dim",
    "seeds": "seed",
    "scorers": "scorer",
    "reductions": "reduction",
    "standardize": "standardize",
}
_SINGLE = (
    "epochs", "batch_size", "learning_rate", "precision", "recipe", "keep_epoch", "options",
    "scorer_options", "subset", "images", "include",
)  # fmt: skip
_DEFAULTS: dict[str, Any] = {
    "methods": ["ae"],
    "latent_dims": [16],
    "seeds": [0],
    "scorers": ["native"],
    "reductions": [None],
    "standardize": [False],
}


def _check_keys(given: Iterable[str], known: Sequence[str], where: str) -> None:
    for key in given:
        if key not in known:
            hint = did_you_mean(key, known) or f"; known: {', '.join(known)}"
            raise SettingsError(f"{where}: unknown key {key!r}{hint}")


def read_plan(path: str | Path) -> dict[str, Any]:
    """Return the ``[sweep]`` table of a plan file, its keys checked.

    Raises:
        SettingsError: if the file is not TOML or holds an unknown key.
    """
    file = Path(path)
    try:
        body = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, RecursionError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(
            f"{file}: must be a TOML file with a [sweep] table ({error})"
        ) from error
    _check_keys(body, ["sweep"], str(file))
    if not isinstance(body.get("sweep"), dict):
        raise SettingsError(f"{file}: must hold a [sweep] table, holds none")
    table: dict[str, Any] = body["sweep"]
    expand(table, where=str(file))
    return table


def expand(table: Mapping[str, Any], *, where: str = "plan") -> list[dict[str, Any]]:
    """Multiply the factors of a ``[sweep]`` table out, in the order they are written.

    Args:
        table: as in the module's docstring.
        where: the file, for messages.

    Returns:
        One mapping per cell: ``dataset``, ``method``, ... and the single settings.

    Raises:
        SettingsError: if a key is unknown, a factor is no list, or no data set is named.
    """
    known = [*_FACTORS, *_SINGLE]
    _check_keys(table, known, where)
    blocks = [{k: v for k, v in table.items() if k != "include"}]
    more = table.get("include", [])
    if not (isinstance(more, list) and all(isinstance(block, dict) for block in more)):
        raise SettingsError(f"{where}: include must be tables, [[sweep.include]], got {more!r}")
    for block in more:
        _check_keys(block, [k for k in known if k != "include"], f"{where}, include")
        blocks.append({**blocks[0], **block})
    cells = [cell for block in blocks for cell in _product({**_DEFAULTS, **block}, where)]
    return cells


def _product(block: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    if not block.get("datasets"):
        raise SettingsError(f"{where}: datasets must name at least one data set, got none")
    for name in _FACTORS:
        if not isinstance(block[name], list):
            raise SettingsError(f"{where}: {name} must be a list, got {block[name]!r}")
    for name in ("subset", "images", "scorer_options"):
        if not isinstance(block.get(name, {}), dict):
            raise SettingsError(f"{where}: {name} must be a table, got {block[name]!r}")
    for seed in block["seeds"]:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise SettingsError(
                f"{where}: seeds must be whole numbers from 0 to 4294967295, got {seed!r}"
            )
    options = block.get("options", {})
    factors = {field: block[name] for name, field in _FACTORS.items()}
    factors |= {"options": options if isinstance(options, list) else [options]}
    single = {k: v for k, v in block.items() if k not in (*_FACTORS, "options")}
    values = itertools.product(*factors.values())
    return [{**single, **dict(zip(factors, row, strict=True))} for row in values]


#: (data set, image settings, subset) -> (fingerprint of all arrays, of the training images)
Fingerprints = Callable[[str, Mapping[str, Any], Subset], tuple[str, str]]


def plan(table: Mapping[str, Any], fingerprints: Fingerprints) -> list[Experiment]:
    """List every experiment of a plan, each once, in the plan's order.

    Args:
        table: the ``[sweep]`` table.
        fingerprints: reads the data; see `normalis.research.data.Store`.
    """
    found = {e.identity: e for e in (_understood(cell, fingerprints) for cell in expand(table))}
    return list(found.values())


def _understood(cell: dict[str, Any], fingerprints: Fingerprints) -> Experiment:
    try:
        return _experiment(cell, fingerprints)
    except NormalisError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
        shown = ", ".join(f"{name} {value!r}" for name, value in cell.items())
        raise SettingsError(f"a plan cannot be understood ({error}): {shown}") from error


def _experiment(cell: dict[str, Any], fingerprints: Fingerprints) -> Experiment:
    _check_keys(cell.get("subset", {}), [f.name for f in fields(Subset)], "subset")
    subset, images = Subset(**cell.get("subset", {})), cell.get("images", {})
    data, train_data = fingerprints(cell["dataset"], images, subset)
    names = ("batch_size", "learning_rate", "precision", "recipe", "standardize", "keep_epoch")
    training = {k: cell[k] for k in names if k in cell}
    epochs = cell.get("epochs", default_epochs(cell["dataset"]))
    rest = ("dataset", "method", "latent_dim", "seed", "scorer")
    return Experiment(
        **{k: cell[k] for k in rest},
        reduction=cell["reduction"] or default_reduction(cell["scorer"]),
        data=data,
        train_data=train_data,
        options=cell.get("options", {}),
        scorer_options=cell.get("scorer_options", {}),
        training=TrainingSettings(epochs=epochs, **training),
        subset=subset,
        images=images,
        image_size=images.get("image_size", 64),
        channels=images.get("channels", 1),
    )


def write_plan(results: str | Path, experiments: Sequence[Experiment]) -> Path:
    """Write the list of experiments to ``RESULTS/plans`` and return the file."""
    identities = [e.identity for e in experiments]
    file = Path(results) / "plans" / f"{content_hash(identities)[:16]}.json"
    rows = [{"id": e.identity, "training_key": e.training_key, **e.settings()} for e in experiments]
    write_json(file, rows)
    return file
