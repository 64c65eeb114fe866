"""The contracts of a method.

::

    AnomalyModel            scores images: anomaly_map, anomaly_score, state, load_state
    ├── DirectModel         is fitted in one go, without a training loop: fit(x)
    ├── CompositeModel      several models, fitted one by one, that read images together
    └── Autoencoder         is trained by `normalis.training.loop`: encode, decode, draw, losses

A method says what its losses are and how its failure is read; it knows nothing of epochs, data
sets or files. Images are ``float32`` tensors (B, C, H, W) in [-1, 1].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from normalis.errors import NotFittedError, SettingsError, did_you_mean

__all__ = [
    "AnomalyModel",
    "Autoencoder",
    "CompositeModel",
    "DirectModel",
    "Footprint",
    "ModelSettings",
    "Phase",
    "check_at_least",
    "check_one_of",
]


def check_one_of(known: Sequence[str], **settings: str) -> None:
    """Raise unless each named setting is one of the known values.

    Raises:
        SettingsError: naming the setting, what it may be and what it was.
    """
    for name, value in settings.items():
        if value not in known:
            raise SettingsError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def check_at_least(least: float, **settings: float) -> None:
    """Raise unless each named setting is a number of at least ``least``.

    Raises:
        SettingsError: naming the setting, its bound and what it was.
    """
    for name, value in settings.items():
        if not value >= least:  # NaN is not at least anything
            raise SettingsError(f"{name} must be at least {least:g}, got {value!r}")


#: Largest side of an image and largest width, number or size of anything else: a hundred times
#: what is used, and small enough that an edited file cannot ask for all memory there is.
MOST_PIXELS, MOST = 4096, 65_536

_KINDS: dict[type, tuple[type, str]] = {
    bool: (bool, "true or false"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: (str, "a text"),
}


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """What every method is built from; a method adds fields of its own in a subclass.

    Args:
        image_size: side S of the square input, a multiple of 16 (four halvings).
        channels: C, 1 or 3.
        latent_dim: size of the bottleneck, the paper's *d*. The paper's default is 16.
        hidden_dim: width of the layers around it, the paper's *D* = 1024.
    """

    image_size: int = 64
    channels: int = 1
    latent_dim: int = 16
    hidden_dim: int = 1024

    def __post_init__(self) -> None:
        for name, most in (("image_size", MOST_PIXELS), ("latent_dim", MOST), ("hidden_dim", MOST)):
            if getattr(self, name) > most:
                raise SettingsError(f"{name} must be at most {most:,}, got {getattr(self, name)}")
        if self.image_size < 16 or self.image_size % 16:
            raise SettingsError(f"image_size must be a multiple of 16, got {self.image_size}")
        if self.channels not in (1, 3):
            raise SettingsError(f"channels must be 1 or 3, got {self.channels}")
        for name in ("latent_dim", "hidden_dim"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1, got {getattr(self, name)}")

    @classmethod
    def from_mapping(cls, options: dict[str, Any]) -> Self:
        """Build the settings, naming the nearest known key for an unknown one."""
        known = [f.name for f in fields(cls)]
        for key in options:
            if key not in known:
                hint = did_you_mean(key, known) or f"; known: {', '.join(known)}"
                raise SettingsError(f"unknown setting {key!r} of this method{hint}")
        defaults = {f.name: f.default for f in fields(cls)}
        for key, value in options.items():
            kind, words = _KINDS.get(type(defaults[key]), (object, ""))
            # A bool is an int to Python, and nobody means 1 by it here.
            if not isinstance(value, kind) or (kind is Integral and isinstance(value, bool)):
                raise SettingsError(f"{key} must be {words}, got {value!r}")
            if kind is Integral and isinstance(value, Integral) and abs(int(value)) > MOST:
                raise SettingsError(f"{key} must be at most {MOST:,}, got {value}")
        return cls(**options)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return asdict(self)

    @property
    def networks(self) -> int:
        """Return how many networks one training is of."""
        return 1


@dataclass(frozen=True)
class Phase:
    """One part of a training step: these parameters follow these losses, by an Adam of their own.

    With every batch the phases step in their order. A method with an adversary has two, one that is
    trained in stages has phases whose spans follow each other.

    Attributes:
        name: prefix of the logged losses; empty for the main phase. What several phases log by one
            name is averaged.
        parameters: what the phase's own optimiser updates.
        losses: ``(x, **draws)`` -> named losses, already weighted.
        after: called once the optimiser has stepped, with the losses' values.
        clip: largest norm of a step's gradient over all parameters; a larger one is scaled down.
        repeat: steps with every batch. The first has the batch's draws, as all phases do; each
            further one calls `Autoencoder.draw` anew.
        span: (from, to) in shares of all steps of the training: the phase steps from the one until
            before the other. The schedule of the ``fast`` recipe runs over this span.
        rate: factor on the learning rate.
        betas: of Adam. With (0, b) it is RMSProp of decay b, but for Adam's correction of the
            first steps.

    Raises:
        SettingsError: if the method asks for what no training can do.
    """

    name: str
    parameters: Sequence[nn.Parameter]
    losses: Callable[..., dict[str, Tensor]]
    after: Callable[[dict[str, float]], None] | None = None
    clip: float | None = None
    repeat: int = 1
    span: tuple[float, float] = (0.0, 1.0)
    rate: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        check_at_least(1, repeat=self.repeat)
        start, end = self.span
        if not 0 <= start < end <= 1:
            raise SettingsError(f"span must be 0 <= from < to <= 1, got {self.span}")
        if not self.rate > 0:
            raise SettingsError(f"rate must be above 0, got {self.rate!r}")

    def has_turn(self, done: float) -> bool:
        """Return whether the phase steps when this share of the training is done, in [0, 1)."""
        start, end = self.span
        return start <= done < end

    @property
    def plain(self) -> bool:
        """Whether it steps once with every batch, by the settings' own Adam."""
        usual = (1, (0.0, 1.0), 1.0, (0.9, 0.999))
        return (self.repeat, self.span, self.rate, self.betas) == usual


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What a method will take, estimated before it is fitted.

    Attributes:
        run: bytes that the fitted model holds, on disk and in memory.
        fit: bytes that fitting needs at most at a time, the images themselves not counted.
        kept: normal images that the fitted model keeps something of.
    """

    run: int
    fit: int
    kept: int

    def __str__(self) -> str:
        run, fit = (f"{n / 1e6:.0f} MB" if n >= 1e6 else f"{n / 1e3:.0f} kB" for n in
                    (self.run, self.fit))  # fmt: skip
        return f"{run} in the run, {fit} while it is fitted, of {self.kept} normal images"


class AnomalyModel(ABC):
    """A fitted model of normal images that says where and how much an image differs."""

    Settings: ClassVar[type[ModelSettings]] = ModelSettings
    #: Whether ``latent_dim`` means anything to the method.
    has_latent: ClassVar[bool] = True
    #: Settings that `AnomalyDetector` and ``fit`` use unless told otherwise. The defaults of
    #: ``Settings`` are the source's.
    default_options: ClassVar[Mapping[str, Any]] = {}
    #: Whether the score judges the image as a whole, rather than reading the map; see
    #: `normalis.panel`.
    judges_whole: ClassVar[bool] = False
    #: Weight of the map's logarithm among others': 1 of a distance, 1/4 of a squared error or what
    #: else has a tail as long.
    map_weight: ClassVar[float] = 0.25
    #: Whether it learns from unlabelled images too, where there are any, by
    #: `Autoencoder.give_unlabelled` and a setting ``unlabelled``, how many there were.
    learns_unlabelled: ClassVar[bool] = False
    #: Why the method cannot be written as ONNX; empty if it can.
    not_exportable: ClassVar[str] = ""
    settings: Any  # of the class's own Settings

    @classmethod
    def default_image_size(cls, options: Mapping[str, Any] | None = None) -> int:
        """Return the image size that is used unless told otherwise.

        Args:
            options: settings of the method that were asked for.
        """
        size: int = cls.Settings.image_size
        return size

    def footprint(self, images: int) -> Footprint | None:
        """Return what fitting on so many images will take, None for what it is not known of."""
        return None

    @abstractmethod
    def anomaly_map(self, x: Tensor) -> Tensor:
        """Return where x differs from normal: (B, C, H, W) -> (B, H, W), higher is worse."""

    def anomaly_score(self, x: Tensor) -> Tensor:
        """Return how much x differs from normal: (B,), by default the mean of the map."""
        return self.anomaly_map(x).flatten(1).mean(1)

    def score_and_map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return `anomaly_score` (B,) and `anomaly_map` (B, H, W); overridden where one helps."""
        return self.anomaly_score(x), self.anomaly_map(x)

    def reconstruct(self, x: Tensor) -> Tensor | None:
        """Return what the model thinks x should look like (B, C, H, W), None if it has no idea."""
        return None

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Return every fitted array by name; with the settings it is the whole model."""

    @abstractmethod
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over the arrays of `state`."""


class DirectModel(AnomalyModel):
    """A model that is fitted in one go; the baselines without a network are of this kind.

    Fitted arrays are kept in ``arrays``, which is all that `state` needs.
    """

    has_latent = False

    def __init__(self, settings: ModelSettings) -> None:
        self.settings = settings
        self.arrays: dict[str, Tensor] = {}

    @abstractmethod
    def fit(self, x: Tensor, *, seed: int = 0) -> Self:
        """Learn from normal images (N, C, H, W) in [-1, 1]; return self."""

    def state(self) -> dict[str, Tensor]:
        """Return the fitted arrays."""
        return self.arrays

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over the fitted arrays."""
        self.arrays = dict(state)

    def fitted(self, name: str) -> Tensor:
        """Return a fitted array.

        Raises:
            NotFittedError: before `fit` or `load_state`.
        """
        if name not in self.arrays:
            raise NotFittedError(f"{type(self).__name__} is not fitted: call fit or load first")
        return self.arrays[name]

    def to(self, device: torch.device | str) -> Self:
        """Move the fitted arrays to a device; return self."""
        self.arrays = {k: v.to(device) for k, v in self.arrays.items()}
        return self


class CompositeModel(AnomalyModel):
    """Several models that are fitted on the same images, one by one, and read images together."""

    #: Members that could not be fitted, with the reason.
    left_out: dict[str, str]

    @abstractmethod
    def parts(self) -> Mapping[str, AnomalyModel]:
        """Return the models by name."""

    @abstractmethod
    def seen_by_part(self, name: str, x: Tensor) -> Tensor:
        """Return images (B, C, S, S) of any range at the size that a part sees."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """Move the parts to a device; return self."""

    @abstractmethod
    def leave_out(self, name: str, reason: str) -> None:
        """Go on without a part that cannot be fitted; raise if none is left."""

    @property
    @abstractmethod
    def readings(self) -> Any:
        """What the readings are, `normalis.calibration.panel.Readings`."""

    @abstractmethod
    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return readings (V, B) of images (B, C, S, S) in [-1, 1], and maps (B, S, S)."""

    @abstractmethod
    def referred(self, readings: Any) -> Self:
        """Return the same models, which measure by the readings (V, n) of normal images."""

    @abstractmethod
    def surprise(self, readings: Any) -> Any:
        """Return the scores (B,) of readings (V, B), zeros before it has any to measure by."""


class Autoencoder(nn.Module, AnomalyModel):
    """A network that compresses an image and rebuilds it; trained by `normalis.training.loop`.

    The anomaly map is by default the squared error, averaged over channels, as in the paper.
    """

    #: Whether trainings that differ in their seed may be computed as one, and whether their latents
    #: may have any width then. The losses of most methods run code that depends on values, step an
    #: adversary, or were not compared with a training alone (`normalis.training.stack`).
    stackable: ClassVar[Literal["no", "one width", "any width"]] = "no"
    #: Share of the training's steps that are done, in [0, 1): set before each step, for losses
    #: whose weights change on the way.
    trained_share: float = 0.0

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.settings = settings

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Compress: (B, C, H, W) -> (B, latent_dim)."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Rebuild: (B, latent_dim) -> (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Compress and rebuild: (B, C, H, W) -> (B, C, H, W)."""
        return self.decode(self.encode(x))

    def draw(self, x: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the randomness of one training step; it is passed on to `losses` by name."""
        return {}

    @abstractmethod
    def losses(self, x: Tensor, **draws: Tensor) -> dict[str, Tensor]:
        """Return the named, weighted losses of a batch; training minimises their sum.

        Deterministic given its draws: all randomness comes from `draw`.
        """

    @property
    def needs_held_out(self) -> bool:
        """Whether `watch` is to be called, with normal images that are not trained on."""
        return False

    def watch(self, held: Tensor, seen: Tensor) -> None:
        """Look at images after an epoch of training, without learning from them.

        Args:
            held: (N, C, H, W) normal images in [-1, 1] that are not trained on.
            seen: (M, C, H, W) images that are.
        """

    def give_unlabelled(
        self, pixels: Tensor | None, *, normals: int = 0, standardize: bool = False
    ) -> None:
        """Take images of which nothing is known to learn from, or give them back.

        Args:
            pixels: (N, C, S, S) as they were read; None gives them back.
            normals: how many normal images it is trained on.
            standardize: as the training does.

        Raises:
            SettingsError: if the method has no use for them (`learns_unlabelled`).
        """
        if pixels is not None:
            raise SettingsError(f"{type(self).__name__} does not learn from unlabelled images")

    def finish(self, seen: Tensor) -> None:
        """Look at images once the training is over, in evaluation mode.

        Args:
            seen: (M, C, H, W) images that were trained on, in [-1, 1].
        """

    def measure(self, held: Tensor, groups: Sequence[Any] | None = None) -> dict[str, float]:
        """Return what a fitted method has to say of images it has neither trained on nor watched.

        Args:
            held: (N, C, H, W) normal images in [-1, 1].
            groups: (N,) patient or group of near copies of each.
        """
        return {}

    def phases(self) -> list[Phase]:
        """Return what a training step does; one phase unless the method has an adversary."""
        return [Phase("", list(self.parameters()), self.losses)]

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return the reconstruction x_hat."""
        x_hat: Tensor = self(x)
        return x_hat

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Return the squared error per pixel, averaged over channels."""
        return (x - self.reconstruct(x)).square().mean(1)

    def state(self) -> dict[str, Tensor]:
        """Return parameters and buffers, contiguous as files want them."""
        return {name: value.contiguous() for name, value in self.state_dict().items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over parameters and buffers."""
        self.load_state_dict(state)
        # The layout of the training loop: another one rounds differently in the last digit.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
