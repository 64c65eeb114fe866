"""The autoencoder that also predicts how well each pixel can be rebuilt.

    (x_hat, log_var) = decode(encode(x))
    loss = mean [exp(-log_var) (x_hat - x)² + log_var],    map = exp(-log_var) (x_hat - x)²

The loss is twice the negative logarithm of a Gaussian's density, up to a constant; at its minimum
exp(log_var) is the variance of the pixel. The decoder's last layer has one more output per channel.

Deviations: log_var has a soft floor, ``floor + softplus(raw - floor)``, at the variance of
``noise`` grey levels. Without it a pixel that never varies (the background of an MR slice) drives
log_var down without end, and one image with something there dominates a batch. A hard clip would
have no gradient below the floor. The authors' code bounds nothing. By default the floor is the
least that there is, the rounding to 256 levels, sqrt(1 / 12) of a level: log_var >= -12.2. `fit`
takes 2 levels, about what coils and detectors put into a dark background: below, a faint ghost
beside the head weighs more than a tumour in it, in the map as in training.

``clip`` bounds the norm of a step's gradient (Pascanu, Mikolov and Bengio, 2013). An image with
something in a dark background has a gradient many times that of the others, Adam remembers its size
for a thousand steps, and training ends where it was thrown to: seeds lay ten points of AUROC apart.
`fit` takes 1, which nearly every step exceeds, so that each batch counts alike.

``beta`` weights each pixel's loss by a power of its own predicted variance, taken as a constant:

    loss = mean exp(beta log_var) [exp(-log_var) (x_hat - x)² + log_var]

Its minimum in log_var is the same, training goes down as steadily, and what comes out was worse
where the background tells.

``members`` trains so many networks at once, from starts of their own, each with an optimiser of its
own, and averages their maps and reconstructions. What one network gets wrong by the chance of its
start, the others do not: with 3, seeds lie half as far apart, and a little more is found, at three
times the cost (docs/explanation/selection.md has all of this).

Reference: Mao et al., "Abnormality detection in chest X-ray images using uncertainty prediction
autoencoders", MICCAI 2020; the weight after Seitzer, Tavakoli, Antic and Martius, "On the pitfalls
of heteroscedastic uncertainty estimation with probabilistic neural networks", ICLR 2022; members
after Lakshminarayanan, Pritzel and Blundell, "Simple and scalable predictive uncertainty estimation
using deep ensembles", NeurIPS 2017.

Use: first choice for radiographs: edges, which are hard for every image, stop counting as lesions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalis.errors import SettingsError
from normalis.models.backbone import Decoder, Encoder
from normalis.models.base import Autoencoder, ModelSettings, Phase, check_at_least

__all__ = ["AEU", "ROUNDING", "AEUSettings"]

#: Standard deviation of rounding, in grey levels.
ROUNDING = 12**-0.5


@dataclass(frozen=True, kw_only=True)
class AEUSettings(ModelSettings):
    """Settings of the autoencoder with predicted variance.

    Args:
        noise: standard deviation in grey levels of 255, the least that is predicted for a pixel.
        clip: largest norm of a step's gradient; 0 leaves every gradient as it is.
        beta: power of the predicted variance that weights a pixel's loss, in [0, 1]; 0 is the
            authors' loss, at 1 the reconstruction learns from the plain squared error.
        members: networks whose maps are averaged.
    """

    noise: float = ROUNDING
    clip: float = 0.0
    beta: float = 0.0
    members: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.noise < 255:
            raise SettingsError(f"noise must be in (0, 255), got {self.noise}")
        check_at_least(0, clip=self.clip)
        check_at_least(1, members=self.members)
        if not 0 <= self.beta <= 1:
            raise SettingsError(f"beta must be in [0, 1], got {self.beta}")

    @property
    def networks(self) -> int:
        """Return the number of members."""
        return self.members


class AEU(Autoencoder):
    """Autoencoder with predicted pixel variance, or several of them with one map."""

    Settings: ClassVar[type[ModelSettings]] = AEUSettings
    stackable = "any width"
    default_options: ClassVar[Mapping[str, Any]] = {"noise": 2.0, "clip": 1.0}

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        self.floor = math.log((2 * self.settings.noise / 255) ** 2)  # least log-variance
        self.encoder = Encoder.of(settings)
        self.decoder = Decoder.of(settings, channels=2 * settings.channels)
        alone = replace(self.settings, members=1)
        self.others = nn.ModuleList(AEU(alone) for _ in range(self.settings.members - 1))

    @property
    def members(self) -> list[AEU]:
        """The networks, this one among them."""
        return [self, *cast(Iterable[AEU], self.others)]

    def encode(self, x: Tensor) -> Tensor:
        """Compress: (B, C, H, W) -> (B, members * latent_dim)."""
        return torch.cat([member.encoder(x) for member in self.members], 1)

    def decode(self, z: Tensor) -> Tensor:
        """Rebuild the image without its variance: (B, members * latent_dim) -> (B, C, H, W)."""
        parts = zip(self.members, z.chunk(len(self.members), 1), strict=True)
        return torch.stack([member.decode_both(part)[0] for member, part in parts]).mean(0)

    def decode_both(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return x_hat and log_var of the first member, (B, C, H, W) each, float32."""
        x_hat, raw = self.decoder(z).float().chunk(2, 1)
        return x_hat, self.floor + F.softplus(raw - self.floor)

    def losses(self, x: Tensor, **draws: Tensor) -> dict[str, Tensor]:
        """Return the error in units of its predicted variance, and the log-variance.

        Of the first member; `phases` has those of the others.
        """
        x_hat, log_var = self.decode_both(self.encoder(x))
        error = (-log_var).exp() * (x_hat - x).square()
        if self.settings.beta:
            weight = (self.settings.beta * log_var.detach()).exp()
            error, log_var = weight * error, weight * log_var
        return {"reconstruction": error.mean(), "log_var": log_var.mean()}

    def negative_elbo(self, x: Tensor) -> Tensor:
        """Return each image's loss times its pixels, averaged over members: (B,)."""
        found = []
        for member in self.members:
            x_hat, log_var = member.decode_both(member.encoder(x))
            loss = (-log_var).exp() * (x_hat - x).square() + log_var
            found.append(loss.flatten(1).sum(1))
        return torch.stack(found).mean(0)

    def phases(self) -> list[Phase]:
        """Return one phase for each member, whose gradient is clipped where that was asked for."""
        own = [*self.encoder.parameters(), *self.decoder.parameters()]
        first = Phase("", own, self.losses, clip=self.settings.clip or None)
        return [first, *(phase for other in self.members[1:] for phase in other.phases())]

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Return the squared error over the predicted variance (B, H, W), averaged over members."""
        maps = []
        for member in self.members:
            x_hat, log_var = member.decode_both(member.encoder(x))
            maps.append(((-log_var).exp() * (x - x_hat).square()).mean(1))
        return torch.stack(maps).mean(0)
