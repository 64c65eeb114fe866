"""AnoGAN: the image that a generator of normal images can come nearest to.

    discriminator   mean softplus(-D(x)) + mean softplus(D(G(z))),    z ~ N(0, I)
    generator       mean softplus(-D(G(z)))
    scoring         z minimises L(z) = (1 - w) mean |x - G(z)| + w mean |f(x) - f(G(z))|,    w = 0.1
                    score = L(z),    map = |x - G(z)|,    f = the layer before D's output

z is found for every image by 150 steps of Adam along the gradient, whose size falls from 0.05 to
nothing along a cosine, from z = 0: the same start for all, so that a score can be had again and
does not depend on the images beside it. ``starts=k`` takes the best of k fixed starts. Scoring is
as slow as that: about a quarter of a second an image on one core.

Deviations: means in place of the publication's sums, so that scores do not grow with the image, and
w weighs otherwise; its start is a draw, and it takes 500 steps. The generator is the decoder that
all methods here share, with a tanh behind it; the discriminator is a small convolutional network
normalised within each image (the publication: by batch). z has 32 numbers; both sides have a
quarter of the recipe's rate, near the publication's 2e-4 for `paper`, with betas (0.5, 0.999). A
thousand images are few for a generator: of 940 chest radiographs and the recipe `fast` it learned
one average image, whatever z is.

Reference: Schlegl, Seeböck, Waldstein, Schmidt-Erfurth and Langs, "Unsupervised anomaly detection
with generative adversarial networks to guide marker discovery", IPMI 2017.

Use: for comparison with what is cited; slow to score, and weak. `f-anogan` came after it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from normalis.errors import SettingsError
from normalis.models.adversarial import Critic, frozen, unrecorded
from normalis.models.backbone import Decoder
from normalis.models.base import Autoencoder, ModelSettings, Phase, check_at_least, check_one_of

__all__ = ["AnoGAN", "AnoGANSettings"]

_BETAS = (0.5, 0.999)  # of both sides, the publication's


@dataclass(frozen=True, kw_only=True)
class AnoGANSettings(ModelSettings):
    """Settings of AnoGAN.

    Args:
        latent_dim: size of z.
        feature_weight: w, of the discriminator's features in the search and in the score.
        residual: ``l1`` (the publication's) or ``l2``, of both errors of the search.
        search_steps: for every image that is scored.
        step_size: of the search's Adam at its start.
        starts: searches an image, of which the best counts; the first starts at z = 0.
        output: ``tanh`` behind the generator, or ``linear``: for standardised images, which leave
            [-1, 1].
        critic_width: channels of the discriminator's first convolution.
        adversarial_rate: of generator and discriminator, as a factor on the learning rate.
    """

    latent_dim: int = 32
    feature_weight: float = 0.1
    residual: str = "l1"
    search_steps: int = 150
    step_size: float = 0.05
    starts: int = 1
    output: str = "tanh"
    critic_width: int = 8
    adversarial_rate: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(
            1, search_steps=self.search_steps, starts=self.starts, critic_width=self.critic_width
        )
        check_one_of(("l1", "l2"), residual=self.residual)
        check_one_of(("tanh", "linear"), output=self.output)
        if not 0 <= self.feature_weight <= 1:
            raise SettingsError(f"feature_weight must be in [0, 1], got {self.feature_weight!r}")
        for name in ("step_size", "adversarial_rate"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"{name} must be above 0, got {getattr(self, name)!r}")


class AnoGAN(Autoencoder):
    """A generator and its discriminator; an image's code is searched for."""

    Settings: ClassVar[Any] = AnoGANSettings
    not_exportable = "its scores are found by a search along gradients"

    def __init__(self, settings: AnoGANSettings) -> None:
        super().__init__(settings)
        self.generator = Decoder.of(settings)
        self.critic = Critic(settings, settings.critic_width)

    def encode(self, x: Tensor) -> Tensor:
        """Search: (B, C, H, W) -> (B, latent_dim)."""
        return self.search(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Generate: (B, latent_dim) -> (B, C, H, W)."""
        x_hat: Tensor = self.generator(z)
        return x_hat.tanh() if self.settings.output == "tanh" else x_hat

    def draw(self, x: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return what both sides' generated images start from, (B, latent_dim) each."""
        shape = (len(x), self.settings.latent_dim)
        return {k: torch.randn(shape, generator=generator) for k in ("noise", "critic_noise")}

    def losses(self, x: Tensor, **draws: Tensor) -> dict[str, Tensor]:
        """Return how little the discriminator takes what is generated for normal images."""
        with frozen(self.critic):
            return {"generator": F.softplus(-self.critic(self.decode(draws["noise"]))).mean()}

    def critic_losses(self, x: Tensor, **draws: Tensor) -> dict[str, Tensor]:
        """Return the discriminator's loss; the generator gets no gradient from it."""
        with torch.no_grad(), unrecorded(self.generator):
            fake = self.decode(draws["critic_noise"])
        real, generated = self.critic(x), self.critic(fake)
        return {"loss": F.softplus(-real).mean() + F.softplus(generated).mean()}

    def phases(self) -> list[Phase]:
        """Train the discriminator, then the generator."""
        critic, generator = list(self.critic.parameters()), list(self.generator.parameters())
        rate = self.settings.adversarial_rate
        return [
            Phase("discriminator ", critic, self.critic_losses, rate=rate, betas=_BETAS),
            Phase("", generator, self.losses, rate=rate, betas=_BETAS),
        ]

    def search(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the z (B, latent_dim) whose image comes nearest to x, and L(z) of each (B,)."""
        best_z, best = self._search_from(x, self._start(0, x))
        for number in range(1, self.settings.starts):
            z, loss = self._search_from(x, self._start(number, x))
            nearer = loss < best
            best_z, best = torch.where(nearer[:, None], z, best_z), torch.where(nearer, loss, best)
        return best_z, best

    def _start(self, number: int, x: Tensor) -> Tensor:
        """Return where a search starts, the same for every image: z = 0, then fixed draws."""
        z = torch.zeros(self.settings.latent_dim)
        if number:
            z = torch.randn(z.shape, generator=torch.Generator().manual_seed(number))
        return z.to(x.device).expand(len(x), -1)

    def _search_from(self, x: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        s = self.settings
        # Also where the caller wants no gradients; losses of images are added up and Adam works
        # element by element, so that they do not meet.
        with torch.inference_mode(False), torch.enable_grad():
            x = x.detach().clone()
            features = self.critic.features(x).detach() if s.feature_weight else None
            z = start.detach().clone().requires_grad_()
            optimiser = torch.optim.Adam([z], s.step_size)
            for step in range(s.search_steps):
                falls = 0.5 * (1 + math.cos(math.pi * step / s.search_steps))
                optimiser.param_groups[0]["lr"] = s.step_size * falls
                (z.grad,) = torch.autograd.grad(self._distance(x, features, z).sum(), z)
                optimiser.step()
            with torch.no_grad():
                return z.detach(), self._distance(x, features, z)

    def _distance(self, x: Tensor, features: Tensor | None, z: Tensor) -> Tensor:
        """Return L(z) of each image (B,)."""
        x_hat = self.decode(z)
        own = self._residual(x - x_hat)
        if features is None:
            return own
        weight: float = self.settings.feature_weight
        return (1 - weight) * own + weight * self._residual(features - self.critic.features(x_hat))

    def _residual(self, difference: Tensor) -> Tensor:
        flat = difference.float().flatten(1)
        return (flat.square() if self.settings.residual == "l2" else flat.abs()).mean(1)

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Return the absolute error per pixel, averaged over channels."""
        return self.score_and_map(x)[1]

    def anomaly_score(self, x: Tensor) -> Tensor:
        """Return L(z) of the z that was found (B,)."""
        return self.search(x)[1]

    def score_and_map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return `anomaly_score` and `anomaly_map` of one search."""
        z, found = self.search(x)
        return found, (x - self.decode(z)).abs().mean(1)
