"""The rate-constrained autoencoder: a wide latent that may hold a stated number of nats.

    z = encode(x),    x_hat = decode(z + n),    n ~ N(0, I) in training, 0 in scoring
    R = ½ log det(I + Cov(z))   nats,    loss = mean (x_hat - x)² + lambda R
    lambda <- max(0, lambda + eta e),  e = mean (x_hat - x)² (R / R* - 1)
    map = (decode(encode(x)) - x)²

This is the paper's Eq. (8), "reduce H(Z) while it exceeds H(X_n)", as an objective that can act:
lambda rises exactly while R > R*, so the setting ``rate`` (R*, nats) replaces the latent dimension
as the dial. Because the decoder feels noise of unit variance the scale of z is fixed, and R bounds
I(X; Z + n) from above (`normalis.entropy.coding_rate`).

Deviations and details: the paper names H(Z) and H(X_n), which are infinite or undefined without a
precision (`docs/explanation/theory.md`); R stands for the first and is *given* for the second. A
batch has fewer images than the latent has dimensions, so the covariance is a running average of
the batches' own: R has the value of the average and the gradient of the current batch. The
multiplier's step is in units of the error (which falls by orders of magnitude in training) and has
no upper bound. The rate follows the multiplier by many steps, so it swings around R* by a tenth
and more, and a training ends wherever the swing is. With ``damping`` the loss is weighted by
max(0, lambda + damping e), which answers to the excess at once, and the swing dies out.
Codes of new patients spread less than those that the network was trained on, so R of training
images is not R of new ones: by up to a third where patients are few. With ``held_out`` the
multiplier therefore follows R of held-out normal images, which give it one number an epoch and no
gradient: R of the running average is then multiplied by

    R(held) / R(as many of the training images) * R(training images) / R(running average)

in which the bias of a small sample cancels, though not all of it. With ``unbiased`` R(held) is
freed of its bias instead (`normalis.entropy.coding_rate_of_groups`) and stands for itself: the
factor is R(held) / R(running average).
Scoring has no noise, which lifts the limit for images unlike those of training; ``samples=k``
averages the map over k fixed draws of noise instead, the same for every image.

Reference: Cai, Chen and Cheng, MICCAI 2024, Eq. (8); the rate after Yu et al., "Learning diverse
and discriminative representations via the principle of maximal coding rate reduction", NeurIPS
2020; the multiplier after Rezende and Viola, "Taming VAEs", 2018; its damping after Stooke, Achiam
and Abbeel, "Responsive safety in reinforcement learning by PID Lagrangian methods", ICML 2020.

Use: to ask how much a latent may hold instead of how wide it is, with `latent_dim` generous (128)
and the rate as the dial, 16 nats to begin with (docs/explanation/selection.md); ``held_out=True``
where it is meant for new images.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from normalis.entropy.coding_rate import (
    coding_rate,
    coding_rate_from_covariance,
    coding_rate_of_groups,
)
from normalis.entropy.validity import ValidityWarning
from normalis.errors import SettingsError
from normalis.models.backbone import Decoder, Encoder
from normalis.models.base import Autoencoder, ModelSettings, Phase, check_at_least

__all__ = ["RateAE", "RateAESettings"]

_BATCH = 256  # images encoded at a time where no gradient is needed
_PARTS = 20  # of held-out images, left out in turn to find the bias of their rate
_NEWEST = 0.3  # share of the newest epoch in what is known of held-out images


@dataclass(frozen=True, kw_only=True)
class RateAESettings(ModelSettings):
    """Settings of the rate-constrained autoencoder.

    Args:
        latent_dim: wide enough not to matter; the rate is what limits.
        rate: R*, nats that the latent may hold.
        dual_step: eta, the multiplier's step as a share of the error.
        damping: what the excess of the moment adds to the multiplier, as a share of the error; 0
            lets the rate swing.
        memory: share of the running covariance that a step keeps; the average then spans about
            (1 + memory) / (1 - memory) batches.
        held_out: whether R* is meant for held-out normal images; the training must have some.
        unbiased: whether R of these is freed of the bias of few images.
        samples: draws of noise that an anomaly map averages over; 0 scores without noise.
    """

    latent_dim: int = 128
    rate: float = 12.0
    dual_step: float = 0.005
    damping: float = 0.0
    memory: float = 0.9
    held_out: bool = False
    unbiased: bool = False
    samples: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, samples=self.samples, damping=self.damping)
        for name in ("rate", "dual_step"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"{name} must be above 0, got {getattr(self, name)!r}")
        if not 0 <= self.memory < 1:
            raise SettingsError(f"memory must be in [0, 1), got {self.memory!r}")


class RateAE(Autoencoder):
    """Autoencoder whose latent holds at most a stated number of nats on normal images."""

    Settings: ClassVar[Any] = RateAESettings
    #: Of what was tried, what holds the rate closer (docs/explanation/selection.md).
    default_options: ClassVar[Mapping[str, Any]] = {"damping": 0.1, "unbiased": True}
    covariance: Tensor
    multiplier: Tensor
    steps: Tensor
    transfer: Tensor
    push: Tensor

    def __init__(self, settings: RateAESettings) -> None:
        super().__init__(settings)
        self.encoder = Encoder.of(settings)
        self.decoder = Decoder.of(settings)
        width = settings.latent_dim
        self.register_buffer("covariance", torch.zeros(width, width))
        self.register_buffer("multiplier", torch.zeros(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        if settings.held_out:
            self.register_buffer("transfer", torch.ones(()))
        if settings.damping:
            self.register_buffer("push", torch.zeros(()))
        self._seen = self.covariance  # of the step that is being taken

    def encode(self, x: Tensor) -> Tensor:
        """Compress, without noise: (B, C, H, W) -> (B, latent_dim)."""
        z: Tensor = self.encoder(x).float()
        return z

    def decode(self, z: Tensor) -> Tensor:
        """Rebuild: (B, latent_dim) -> (B, C, H, W)."""
        x_hat: Tensor = self.decoder(z)
        return x_hat

    def draw(self, x: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the noise on the latent, (B, latent_dim)."""
        shape = (len(x), self.settings.latent_dim)
        return {"noise": torch.randn(shape, generator=generator)}

    def losses(self, x: Tensor, **draws: Tensor) -> dict[str, Tensor]:
        """Return the mean squared error and the weighted rate."""
        z = self.encode(x)
        x_hat = self.decode(z + draws["noise"])
        return {
            "reconstruction": (x_hat.float() - x).square().mean(),
            "rate": self._weight() * self._running_rate(z),
        }

    def negative_elbo(self, x: Tensor) -> Tensor:
        """Return each image's squared error, (B,); the rate is one of many images, not of one."""
        errors: Tensor = (self(x).float() - x).square().flatten(1).sum(1)
        return errors

    def _weight(self) -> Tensor:
        """Return what the rate counts in the loss: the multiplier, damped where it is to be."""
        if not self.settings.damping:
            return self.multiplier
        return (self.multiplier + self.push).clamp(min=0)

    def _running_rate(self, z: Tensor) -> Tensor:
        """Return R of the running covariance, with the gradient of this batch: a scalar."""
        # In bfloat16 the product of 64 samples would lose the small variances.
        with torch.autocast(z.device.type, enabled=False):
            centred = z - z.mean(0)
            batch = centred.T @ centred / (len(z) - 1)
            # A plain mean until the memory is full, so that the start at zero leaves no trace.
            weight = max(1 - self.settings.memory, 1 / (int(self.steps) + 1))
            self._seen = torch.lerp(self.covariance, batch.detach(), weight)
            return coding_rate_from_covariance(self._seen + (batch - batch.detach()))

    def phases(self) -> list[Phase]:
        """Train on the losses; then accumulate the covariance and move the multiplier."""
        return [Phase("", list(self.parameters()), self.losses, self._ascend)]

    @torch.no_grad()
    def _ascend(self, losses: dict[str, float]) -> None:
        self.covariance.copy_(self._seen)
        self.steps += 1
        held = float(self.transfer) if self.settings.held_out else 1.0
        excess = losses["reconstruction"] * (held * self.training_rate() / self.settings.rate - 1)
        self.multiplier += self.settings.dual_step * excess
        self.multiplier.clamp_(min=0)
        if self.settings.damping:
            self.push.fill_(self.settings.damping * excess)

    @property
    def needs_held_out(self) -> bool:
        """Whether the rate is meant for held-out images."""
        return bool(self.settings.held_out)

    @torch.no_grad()
    def watch(self, held: Tensor, seen: Tensor) -> None:
        """Measure how the rate carries over to images that are not trained on."""
        held_codes = self._codes(held)
        carried = self._unbiased(held_codes) if self.settings.unbiased else None
        if carried is None:
            carried = self._compared(held_codes, self._codes(seen))
        # An average of some epochs, for a single one is noisy.
        self.transfer.lerp_(carried.to(self.transfer) / self.training_rate(), _NEWEST)

    def _unbiased(self, codes: Tensor) -> Tensor | None:
        """Return R of the population of held-out images, None if they are too few to say it."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ValidityWarning)
            rate = coding_rate_of_groups(codes.numpy(), parts=_PARTS).value
        return None if math.isnan(rate) else torch.tensor(rate)

    def _compared(self, held_codes: Tensor, codes: Tensor) -> Tensor:
        """Return R of held-out images as a share of that of as many training images."""
        n = min(len(held_codes), len(codes))
        every = torch.linspace(0, len(codes) - 1, n).long()
        return coding_rate(held_codes) / coding_rate(codes[every]) * coding_rate(codes)

    def _codes(self, x: Tensor) -> Tensor:
        """Return the codes of images as scoring sees them, (N, latent_dim), float64."""
        was_training, device = self.training, self.covariance.device
        self.eval()
        codes = torch.cat([self.encode(part.to(device)).cpu() for part in x.split(_BATCH)])
        self.train(was_training)
        return codes.double()

    def training_rate(self) -> float:
        """Return R of the covariance accumulated in training, in nats."""
        return float(coding_rate_from_covariance(self.covariance))

    @torch.no_grad()
    def rate_of(self, x: Tensor) -> float:
        """Measure R on images as scoring sees them, normal or not.

        Args:
            x: (N, C, H, W) in [-1, 1]; some thousands for a wide latent.

        Returns:
            Nats; NaN with a warning where N images are too few (`normalis.entropy.coding_rate`).
        """
        return coding_rate(self._codes(x).numpy())

    @torch.no_grad()
    def measure(self, held: Tensor, groups: Sequence[Any] | None = None) -> dict[str, float]:
        """Return the rate of held-out images with its 95 % interval, where they can say it."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ValidityWarning)  # an absent number says it
            rate = coding_rate_of_groups(self._codes(held).numpy(), groups)
        if math.isnan(rate.value):
            return {}
        return {"rate": rate.value, "rate_low": rate.low, "rate_high": rate.high}

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Return the squared error of the reconstruction, or averaged over fixed noise."""
        if not self.settings.samples:
            return super().anomaly_map(x)
        z = self.encode(x)
        # One seed for all images: a score must not depend on the images scored before it.
        noise = torch.randn(
            self.settings.samples, z.shape[1], generator=torch.Generator().manual_seed(0)
        ).to(z.device)
        maps = [(x - self.decode(z + n)).square().mean(1) for n in noise]
        return torch.stack(maps).mean(0)
