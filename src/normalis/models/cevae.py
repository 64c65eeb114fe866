"""The context-encoding variational autoencoder: it rebuilds images, and images with holes.

    loss = mean (g(z) - x)² + beta KL + context mean (g(mu(x~)) - x)²,    z ~ q(z | x)
    x~ = x with one to three squares of its own erased,    map = (g(mu(x)) - x)²

One encoder and one decoder g see both inputs, and both are held against the intact image. Each
image has a draw of its own: 1 to 3 squares, alike in size, of 2.4 to 10 % of its area together,
filled with -1, black; they may overlap.

Read as published by `scorer=elbo` (images) and `scorer=gradient` with ``form=cevae`` (pixels: the
error times the slope of the bound) or ``form=combi`` (the error times the slope of the KL), both
with ``smoothing=0.047``.

Deviations: networks, latent size and weight of the KL are those of `vae`, not four convolutions of
16 to 1024 channels and a latent of 1024. The code of Baur et al.'s comparison gives every image of
a batch the squares of its last one, and holds the second reconstruction against the erased image,
so that holes are kept; this does neither. Zimmerer's later code divides slopes by their range in
the batch, which makes a map depend on its neighbours; here nothing is divided.

Reference: Zimmerer, Kohl, Petersen, Isensee and Maier-Hein, "Context-encoding variational
autoencoder for unsupervised anomaly detection", 2018, arXiv:1812.05941; Zimmerer et al.,
"Unsupervised anomaly localization using variational auto-encoders", MICCAI 2019, for the readings.

Use: in place of `vae`, at twice its cost, where the slope of the KL is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from normalis.errors import SettingsError
from normalis.models.base import check_at_least
from normalis.models.vae import VAE, VAESettings

__all__ = ["CeVAE", "CeVAESettings"]

_MOST_SQUARES = 3


@dataclass(frozen=True, kw_only=True)
class CeVAESettings(VAESettings):
    """Settings of the context-encoding variational autoencoder.

    Args:
        context: weight of the reconstruction of erased images; the publication's is 1.
        least_erased: of the image's area, all squares together.
        most_erased: likewise; below 1.
        fill: what an erased square holds; -1 is black.
    """

    context: float = 1.0
    least_erased: float = 0.024
    most_erased: float = 0.1
    fill: float = -1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, context=self.context, least_erased=self.least_erased)
        if not self.least_erased <= self.most_erased < 1:
            raise SettingsError(
                f"most_erased must be in [least_erased, 1), got {self.most_erased} with "
                f"least_erased = {self.least_erased}"
            )


class CeVAE(VAE):
    """Variational autoencoder that also fills in what was erased."""

    Settings: ClassVar[Any] = CeVAESettings
    stackable: ClassVar[Literal["no", "one width", "any width"]] = "no"

    def draw(self, x: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the latent's noise, and the squares of each image: how many, how large, where."""
        n = len(x)
        return {
            **super().draw(x, generator),
            "count": torch.randint(1, _MOST_SQUARES + 1, (n,), generator=generator),
            "area": torch.rand(n, generator=generator),
            "place": torch.rand(n, _MOST_SQUARES, 2, generator=generator),
        }

    def holes(self, count: Tensor, area: Tensor, place: Tensor) -> Tensor:
        """Return where each image is erased: (B, 1, S, S) bool.

        Args:
            count: (B,) number of squares, 1 to 3.
            area: (B,) in [0, 1], between the least and the most that is erased.
            place: (B, 3, 2) in [0, 1], from the first to the last row and column that fit.
        """
        s = self.settings
        share = s.least_erased + area * (s.most_erased - s.least_erased)
        side = ((share / count).sqrt() * s.image_size).round()[:, None, None]  # (B, 1, 1)
        corner = (place * (s.image_size - side + 1)).floor()  # (B, 3, 2)
        line = torch.arange(s.image_size, device=place.device)
        offset = line - corner[..., None]  # (B, 3, 2, S)
        inside = (offset >= 0) & (offset < side[..., None])
        square = inside[:, :, 0, :, None] & inside[:, :, 1, None, :]  # (B, 3, S, S)
        there = torch.arange(_MOST_SQUARES, device=count.device) < count[:, None]
        erased: Tensor = (square & there[:, :, None, None]).any(1, keepdim=True)
        return erased

    def losses(self, x: Tensor, **draws: Tensor) -> dict[str, Tensor]:
        """Return the losses of `vae`, and the weighted error of the erased images' rebuilding."""
        found = super().losses(x, noise=draws["noise"])
        holes = self.holes(draws["count"], draws["area"], draws["place"])
        x_hat = self.decode(self.encode(torch.where(holes, self.settings.fill, x)))
        error = (x_hat.float() - x).square().mean()
        return {**found, "context": self.settings.context * error}
