"""DDAD: networks of normal images against networks of unlabelled ones, and a refined map.

    mu, sd = mean and unbiased deviation of K networks trained on normal images,
    mu_u = mean of K networks trained on normal and unlabelled images,   v = predicted variance
    rec = (x - mu)² / v,    intra = sd / sqrt(v),    inter = |mu_u - mu| / sqrt(v)
    map = refine([inter, intra]), the probability of an anomaly, or one of the three

A hospital has images of which nothing is known, some of them anomalous. Networks that have seen
them rebuild anomalies a little better than networks that have not: where the two disagree (*inter*)
is a sign, and so is where networks that have seen normal images alone disagree among themselves
(*intra*). The *refinement* (ASR) is a small network that learns on normal images to tell, from
these maps, squares in which another normal image was blended: anomalies of our own making. It is
trained last, while the networks stand still. Without unlabelled images the method is intra and its
refinement, which needs nothing but normal images.

Unlabelled images come by ``normalis fit NORMALS --unlabelled FOLDER`` or
``AnomalyDetector(method="ddad").fit(normals, unlabelled=...)``. They must be of other patients than
the normal images, which calibrate the p-values, and than the images to be tested. By the authors'
figures the gain grows with the share of anomalies among them. Without any, inter is one more
disagreement of networks about what none of them has seen; where they come from another scanner, it
measures that (studies/unlabelled_share.py).

Deviations from the authors: the encoder and decoder of all methods here, hidden layer 1024 instead
of 2048; all networks see the same batches, in which those of the unlabelled images find some of
them in place of normal ones, by their share of both, so that all take as many steps as each other;
the refinement has 32 channels instead of 128, takes the last fifth of the steps with whole batches
instead of 100 epochs with 8 images, and has no weight decay. With ``network=ae`` and ``memae`` v
is 1. The authors read the mean of the map, here ``--scorer native``.

Reference: Cai, Chen, Yang, Zhou and Cheng, "Dual-distribution discrepancy with self-supervised
refinement for anomaly detection in medical images", Medical Image Analysis 86 (2023),
arXiv:2210.04227; first in MICCAI 2022, arXiv:2206.03935.

Use: where there is a folder of unlabelled images of the same kind, patients with disease among
them; without one, in place of `ae-u` at three times the cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from normalis.errors import SettingsError
from normalis.models.ae import AE, AESettings
from normalis.models.ae_u import AEU, AEUSettings
from normalis.models.base import (
    Autoencoder,
    ModelSettings,
    Phase,
    check_at_least,
    check_one_of,
)
from normalis.models.inputs import to_model_input
from normalis.models.memae import MemAE, MemAESettings

__all__ = ["DDAD", "DDADSettings", "Refiner", "blend", "draw_squares", "focal_loss"]

READINGS = ("asr", "rec", "intra", "inter")
_SPAN = 0.2  # share of the steps, the last, that refine
_RATE = 0.25  # of the refinement's learning rate, on that of the networks
_SMOOTH = 1e-5  # least probability that the focal loss takes the logarithm of
_APPLIED = 0.5  # share of images that get a square
_CENTRE = 0.8  # share of the side, in the middle, where its centre lies
_HALF = (0.05, 0.2)  # of its half-width, in shares of the side


@dataclass(frozen=True, kw_only=True)
class DDADSettings(ModelSettings):
    """Settings of DDAD.

    Args:
        network: ``ae-u``, ``ae`` or ``memae``.
        members: K, networks of each kind, at least 2.
        reading: ``asr`` refines; ``rec``, ``intra`` or ``inter`` are maps as they are.
        refiner_width: channels of the refinement.
        unlabelled: number of unlabelled images that it learned from; `fit` sets it.
    """

    network: str = "ae-u"
    members: int = 3
    reading: str = "asr"
    refiner_width: int = 32
    unlabelled: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of(("ae-u", "ae", "memae"), network=self.network)
        check_one_of(READINGS, reading=self.reading)
        check_at_least(2, members=self.members)
        check_at_least(1, refiner_width=self.refiner_width)
        check_at_least(0, unlabelled=self.unlabelled)
        if self.reading == "inter" and not self.unlabelled:
            raise SettingsError(
                "reading inter compares with unlabelled images: give some (--unlabelled FOLDER, "
                "unlabelled=...), or read intra"
            )

    @property
    def networks(self) -> int:
        """Return the number of networks of both kinds."""
        return self.members * (2 if self.unlabelled else 1)


def _network(settings: DDADSettings) -> Autoencoder:
    shared = {name: getattr(settings, name) for name in ModelSettings.__dataclass_fields__}
    if settings.network == "ae-u":
        return AEU(AEUSettings(**shared, **AEU.default_options))
    if settings.network == "memae":
        return MemAE(MemAESettings(**shared, shrinkage=0.0))
    return AE(AESettings(**shared))


class Refiner(nn.Module):
    """Maps of disagreement (B, maps, H, W) -> the probability of an anomaly (B, H, W).

    Args:
        maps: how many there are.
        width: channels between.
    """

    def __init__(self, maps: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(maps, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 2, 3, padding=1),
        )  # fmt: skip

    def forward(self, maps: Tensor) -> Tensor:
        """Return the probability of each pixel."""
        found: Tensor = self.layers(maps).softmax(1)[:, 1]
        return found


def focal_loss(probability: Tensor, label: Tensor) -> Tensor:
    """Return the focal loss with gamma = 2: the cross entropy, less where a pixel is easy.

    Args:
        probability: of an anomaly, any shape.
        label: 1 where there is one, else 0, of the same shape.

    Returns:
        The mean, a scalar.
    """
    right = torch.where(label > 0.5, probability, 1 - probability).clamp(_SMOOTH, 1 - _SMOOTH)
    return -((1 - right).square() * right.log()).mean()


def draw_squares(count: int, side: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return where squares lie in a batch, which image fills each and how much of it.

    Args:
        count: images of the batch.
        side: of an image, in pixels.
        generator: of the draws.

    Returns:
        ``squares`` (B, 4) long: first and last row, first and last column, past the end; empty
        where an image has none. ``partner`` (B,) long. ``opacity`` (B,) in [0, 1).
    """
    margin = (1 - _CENTRE) / 2 * side
    centre = margin + torch.rand(count, 2, generator=generator) * (side - 2 * margin)
    least, most = (max(1, round(share * side)) for share in _HALF)
    half = torch.randint(least, most + 1, (count, 1), generator=generator)
    has_one = torch.rand(count, 1, generator=generator) < _APPLIED
    low, high = (centre.long() - half).clamp_min(0), (centre.long() + half).clamp_max(side)
    high = torch.where(has_one, high, low)
    shift = torch.randint(1, max(2, count), (1,), generator=generator)
    return {
        "squares": torch.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], 1),
        "partner": (torch.arange(count) + shift) % count,
        "opacity": torch.rand(count, generator=generator),
    }


def blend(x: Tensor, squares: Tensor, partner: Tensor, opacity: Tensor) -> tuple[Tensor, Tensor]:
    """Return images into which squares of others were blended, and where: (B, H, W) of 0 and 1.

    Args:
        x: (B, C, H, W).
        squares: of `draw_squares`, as are the others.
        partner: image that fills the square.
        opacity: how much of it: (1 - opacity) x + opacity y.
    """
    top, bottom, left, right = (edge[:, None] for edge in squares.unbind(1))
    line = torch.arange(x.shape[-1], device=x.device)
    rows, columns = (line >= top) & (line < bottom), (line >= left) & (line < right)
    inside = (rows[:, :, None] & columns[:, None]).to(x.dtype)
    part = inside[:, None] * opacity.view(-1, 1, 1, 1)
    return x + part * (x[partner] - x), inside


class DDAD(Autoencoder):
    """Networks of normal images, networks of unlabelled ones where there are any, a refinement."""

    Settings: ClassVar[Any] = DDADSettings
    learns_unlabelled = True

    def __init__(self, settings: DDADSettings) -> None:
        super().__init__(settings)
        count = range(settings.members)
        self.normative = nn.ModuleList(_network(settings) for _ in count)
        self.unknown = nn.ModuleList(_network(settings) for _ in count if settings.unlabelled)
        self.refiner: Refiner | None = None
        if settings.reading == "asr":
            self.refiner = Refiner(2 if settings.unlabelled else 1, settings.refiner_width)
        self._given: tuple[Tensor, float, bool] | None = None

    # --- training ---

    def give_unlabelled(
        self, pixels: Tensor | None, *, normals: int = 0, standardize: bool = False
    ) -> None:
        """Take unlabelled images to learn from, or give them back.

        Args:
            pixels: (N, C, S, S) as they were read; None gives them back.
            normals: how many normal images it is trained on.
            standardize: as the training does.
        """
        share = 0.0 if pixels is None else len(pixels) / (len(pixels) + normals)
        self._given = None if pixels is None else (pixels, share, standardize)

    def draw(self, x: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return squares for the refinement, and unlabelled images with the places they take."""
        found = draw_squares(len(x), x.shape[-1], generator)
        if not self.settings.unlabelled:
            return found
        if self._given is None:
            raise SettingsError(
                f"unlabelled = {self.settings.unlabelled} images were said and none are there: "
                "give them by give_unlabelled"
            )
        pixels, share, standardize = self._given
        rows = torch.randint(len(pixels), (len(x),), generator=generator).to(pixels.device)
        found["unlabelled"] = to_model_input(pixels[rows], standardize=standardize)
        found["takes_part"] = torch.rand(len(x), generator=generator) < share
        return found

    def losses(self, x: Tensor, **draws: Tensor) -> dict[str, Tensor]:
        """Return the losses of the first network of normal images; `phases` has all."""
        return self._first.losses(x)

    def phases(self) -> list[Phase]:
        """Train the networks of both kinds, each by itself, and then the refinement."""
        span = (0.0, 1 - _SPAN if self.refiner else 1.0)
        found = []
        for network in self._normative:
            found += [replace(p, span=span, losses=_alone(p.losses)) for p in network.phases()]
        for network in self._unknown:
            for p in network.phases():
                losses = partial(_beside, p.losses)
                found.append(replace(p, name="unlabelled ", span=span, losses=losses))
        if self.refiner is not None:
            own = list(self.refiner.parameters())
            found.append(Phase("", own, self._refine, span=(1 - _SPAN, 1.0), rate=_RATE))
        return found

    def _refine(self, x: Tensor, **draws: Tensor) -> dict[str, Tensor]:
        """Return the loss of finding the squares in the networks' maps."""
        with torch.autocast(x.device.type, enabled=False):
            with torch.no_grad(), self._standing_still():
                names = ("squares", "partner", "opacity")
                seen, label = blend(x, *(draws[name] for name in names))
                maps = self._refined_from(self.discrepancies(seen))
            assert self.refiner is not None  # else it has no phase
            return {"refinement": focal_loss(self.refiner(maps), label)}

    @contextmanager
    def _standing_still(self) -> Iterator[None]:
        """Let the networks compute as in scoring, by their running statistics."""
        was = [(network, network.training) for network in (*self._normative, *self._unknown)]
        for network, _ in was:
            network.eval()
        try:
            yield
        finally:
            for network, training in was:
                network.train(training)

    # --- reading ---

    @property
    def _normative(self) -> Sequence[Autoencoder]:
        return cast(Sequence[Autoencoder], self.normative)

    @property
    def _unknown(self) -> Sequence[Autoencoder]:
        return cast(Sequence[Autoencoder], self.unknown)

    @property
    def _first(self) -> Autoencoder:
        return self._normative[0]

    def encode(self, x: Tensor) -> Tensor:
        """Compress by each network of normal images: (B, C, H, W) -> (B, K * latent_dim)."""
        return torch.cat([network.encode(x) for network in self._normative], 1)

    def decode(self, z: Tensor) -> Tensor:
        """Rebuild, and average: (B, K * latent_dim) -> (B, C, H, W)."""
        parts = zip(self._normative, z.chunk(len(self._normative), 1), strict=True)
        return torch.stack([network.decode(part) for network, part in parts]).mean(0)

    def discrepancies(self, x: Tensor) -> dict[str, Tensor]:
        """Return ``rec``, ``intra`` and, with unlabelled images, ``inter``: (B, H, W) each."""
        rebuilt, variance = _rebuilt(self._normative, x)
        mean, spread = rebuilt.mean(0), variance.sqrt()
        found = {
            "rec": ((x - mean).square() / variance).mean(1),
            "intra": (rebuilt.std(0) / spread).mean(1),
        }
        if self._unknown:
            other = _rebuilt(self._unknown, x)[0].mean(0)
            found["inter"] = ((other - mean).abs() / spread).mean(1)
        return found

    def _refined_from(self, maps: dict[str, Tensor]) -> Tensor:
        return torch.stack([maps[name] for name in ("inter", "intra") if name in maps], 1)

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Return the refined probability, or the map that is read as it is: (B, H, W)."""
        maps = self.discrepancies(x)
        if self.refiner is None:
            return maps[self.settings.reading]
        found: Tensor = self.refiner(self._refined_from(maps))
        return found

    def measure(self, held: Tensor, groups: Sequence[Any] | None = None) -> dict[str, float]:
        """Return the share of planted squares inside which a map rises; 0.5 knows nothing of them.

        The refinement can learn from its squares no more than the networks' maps show of them.

        Args:
            held: (N, C, H, W) normal images in [-1, 1].
            groups: not needed.
        """
        drawn = draw_squares(len(held), held.shape[-1], torch.Generator().manual_seed(0))
        places = (drawn[name].to(held.device) for name in ("squares", "partner", "opacity"))
        planted, inside = blend(held, *places)
        has_one = inside.flatten(1).any(1)
        if not has_one.any():
            return {}
        before, after = self._maps_of(held[has_one]), self._maps_of(planted[has_one])
        return {
            f"squares that raise {name}": float(
                (((after[name] - before[name]) * inside[has_one]).sum((1, 2)) > 0).float().mean()
            )
            for name in before
        }

    def _maps_of(self, images: Tensor) -> dict[str, Tensor]:
        """Return what the refinement reads, and what it makes of it, (N, H, W) each."""
        parts = []
        for x in images.split(64):
            maps = self.discrepancies(x)
            maps.pop("rec")
            refined = (
                {} if self.refiner is None else {"asr": self.refiner(self._refined_from(maps))}
            )
            parts.append(maps | refined)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _rebuilt(networks: Sequence[Autoencoder], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return each network's reconstruction (K, B, C, H, W), and the mean variance (B, C, H, W)."""
    if not isinstance(networks[0], AEU):
        rebuilt = torch.stack([network(x).float() for network in networks])
        return rebuilt, torch.ones_like(x)
    both = [n.decode_both(n.encoder(x)) for n in cast(Sequence[AEU], networks)]
    variance = torch.stack([log_var for _, log_var in both]).exp().mean(0)
    return torch.stack([x_hat for x_hat, _ in both]), variance


Losses = Callable[..., dict[str, Tensor]]


def _alone(losses: Losses) -> Losses:
    """Return losses that are not told what was drawn for others."""
    return lambda x, **draws: losses(x)


def _beside(losses: Losses, x: Tensor, **draws: Tensor) -> dict[str, Tensor]:
    """Return losses of a batch in which unlabelled images have taken some places."""
    chosen = draws["takes_part"].view(-1, 1, 1, 1)
    return losses(torch.where(chosen, draws["unlabelled"], x))
