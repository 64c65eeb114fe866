"""Codes of patches, and a transformer that says how likely each is after the others.

    t = tokens(encode(x))                   the number of the nearest of M codes at each place
    score = mean over orders and places of -log p(t_i | those before it in the order)
    wrong_i = p_i <= alpha among log p(t_i) of normal images at the same place
    map = mean over orders of |x - decode(heal(t, wrong))| * wrong, on the image's grid

Two stages: first an autoencoder whose code at each of S / 8 x S / 8 places is one of 64 vectors,
then a transformer on its tokens, which reads them row by row and in reverse. A token is wrong where
normal images nearly never have one as unlikely at that place; it is replaced by the likeliest after
those that have been healed before it, and the image is decoded again. Only changed places show.

Deviations, and why:

* Size: 2D, S / 8 places and 64 codes of 32 numbers; theirs are volumes of 20 x 28 x 25 places and,
  in the first author's 2D example, 16 x 16 places and 16 codes. The transformer has 4 blocks of
  width 128, theirs 16 to 22 in width 128 to 512.
* One transformer for all orders, told which place comes next, in place of one each; 2 orders, 8 at
  most (theirs).
* What is wrong is decided at each place by a conformal p-value of at most ``alpha`` among normal
  images, in place of one probability for all places. Those are the training images, unless
  ``held_out`` keeps others aside; where they are too few for a place, all places are joined.
* The likeliest token heals, where they draw several and average.

A likelihood favours simple images: a blank one is likelier than a normal one. ``score="typical"``
reads mean |-log p - its mean over normal images at that place| instead.

Reference: Pinaya, Tudosiu, Gray, Rees, Nachev, Ourselin and Cardoso, "Unsupervised brain imaging 3D
anomaly detection and segmentation with transformers", Medical Image Analysis 79, 2022.

Use: whole images that are put together unlike normal ones; maps are as coarse as the places.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalis.errors import SettingsError
from normalis.models.adversarial import frozen
from normalis.models.base import (
    Autoencoder,
    ModelSettings,
    Phase,
    check_at_least,
    check_one_of,
)
from normalis.models.codebook import Codebook
from normalis.models.token_transformer import ORDERS, TokenTransformer, orders_of

__all__ = ["VQTransformer", "VQTransformerSettings"]

_HALVINGS = 3
_RESIDUAL_BLOCKS = 2
_COMMITMENT = 0.25
# A code that nothing is near to is drawn anew after 45 steps; a first stage has hundreds.
_DECAY, _DEAD = 0.95, 0.1
# Until features have found their places codes are placed by k-means every so many steps; codes that
# follow would end on the few that an untrained encoder gives.
_PLACE_EVERY, _PLACE_UNTIL = 8, 0.5  # share of the first stage


@dataclass(frozen=True, kw_only=True)
class VQTransformerSettings(ModelSettings):
    """Settings of the tokens and of the transformer.

    ``latent_dim`` and ``hidden_dim`` mean nothing to it.

    Args:
        codes: M, of different tokens.
        code_dim: numbers of a code.
        width: channels of the autoencoder.
        transformer_width: of the transformer, a multiple of ``heads``.
        depth: its blocks.
        heads: of each of its attentions.
        orders: in which tokens are read, 1 to 8.
        first_stage: share of the steps that train the autoencoder; the others train the
            transformer.
        alpha: a token is wrong if at most this share of normal images is as unlikely there.
        score: ``likelihood``, or ``typical``.
        held_out: whether what is wrong is decided by normal images that were not trained on.
    """

    codes: int = 64
    code_dim: int = 32
    width: int = 64
    transformer_width: int = 128
    depth: int = 4
    heads: int = 4
    orders: int = 2
    first_stage: float = 0.5
    alpha: float = 0.01
    score: str = "likelihood"
    held_out: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(2, codes=self.codes)
        check_at_least(1, code_dim=self.code_dim, width=self.width, depth=self.depth)
        check_at_least(1, heads=self.heads, orders=self.orders)
        check_one_of(("likelihood", "typical"), score=self.score)
        if self.orders > ORDERS:
            raise SettingsError(f"orders must be at most {ORDERS}, got {self.orders}")
        if self.transformer_width % self.heads:
            raise SettingsError(
                f"transformer_width must be a multiple of heads = {self.heads}, got "
                f"{self.transformer_width}"
            )
        for name in ("first_stage", "alpha"):
            if not 0 < getattr(self, name) < 1:
                raise SettingsError(f"{name} must be in (0, 1), got {getattr(self, name)!r}")


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1)
        )

    def forward(self, y: Tensor) -> Tensor:
        return F.relu(y + self.layers(y))


def _encoder(s: VQTransformerSettings) -> nn.Sequential:
    layers: list[nn.Module] = []
    widths = [s.channels, max(1, s.width // 2), s.width, s.width]
    for a, b in pairwise(widths):
        layers += [nn.Conv2d(a, b, 4, stride=2, padding=1), nn.ReLU()]
    layers += [_Residual(s.width) for _ in range(_RESIDUAL_BLOCKS)]
    return nn.Sequential(*layers, nn.Conv2d(s.width, s.code_dim, 1))


def _decoder(s: VQTransformerSettings) -> nn.Sequential:
    half = max(1, s.width // 2)
    return nn.Sequential(
        nn.Conv2d(s.code_dim, s.width, 3, padding=1),
        *[_Residual(s.width) for _ in range(_RESIDUAL_BLOCKS)],
        nn.ConvTranspose2d(s.width, s.width, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(s.width, half, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(half, s.channels, 4, stride=2, padding=1),
    )


class VQTransformer(Autoencoder):
    """An autoencoder with a codebook, and a transformer on its tokens."""

    Settings: ClassVar[Any] = VQTransformerSettings
    has_latent = False
    judges_whole = True
    map_weight = 1.0
    orders: Tensor
    rare: Tensor
    usual: Tensor
    moved: Tensor

    def __init__(self, settings: VQTransformerSettings) -> None:
        super().__init__(settings)
        s = settings
        self.side = s.image_size // 2**_HALVINGS
        places = self.side**2
        self.encoder, self.decoder = _encoder(s), _decoder(s)
        self.codebook = Codebook(s.codes, s.code_dim, decay=_DECAY, dead=_DEAD)
        self.transformer = TokenTransformer(
            s.codes, places, width=s.transformer_width, depth=s.depth, heads=s.heads
        )
        self.register_buffer("orders", orders_of(self.side, s.orders), persistent=False)
        # log p of a token, by order and place: below the first it is wrong; the second is usual.
        self.register_buffer("rare", torch.full((s.orders, places), -torch.inf))
        self.register_buffer("usual", torch.zeros(s.orders, places))
        self.register_buffer("moved", torch.zeros((), dtype=torch.int64))  # times that codes were
        self._given = (torch.zeros(0), 0)  # features of the last step, and a seed

    # --- tokens and images ---

    def _features(self, x: Tensor) -> Tensor:
        """Return what is quantised, (B, T, code_dim) float32."""
        features: Tensor = self.encoder(x).float().flatten(2).transpose(1, 2)
        return features

    def tokens(self, x: Tensor) -> Tensor:
        """Return the number of the code at each place, (B, T) row by row."""
        return self.codebook.nearest(self._features(x))

    def image(self, tokens: Tensor) -> Tensor:
        """Return the image (B, C, S, S) of tokens (B, T)."""
        return self._rebuild(self.codebook.codes[tokens])

    def _rebuild(self, codes: Tensor) -> Tensor:
        x_hat: Tensor = self.decoder(codes.transpose(1, 2).unflatten(2, (self.side, self.side)))
        return x_hat

    def encode(self, x: Tensor) -> Tensor:
        """Return the codes of all places: (B, C, H, W) -> (B, T * code_dim)."""
        return self.codebook.codes[self.tokens(x)].flatten(1)

    def decode(self, z: Tensor) -> Tensor:
        """Rebuild from the codes of all places: (B, T * code_dim) -> (B, C, H, W)."""
        return self._rebuild(z.unflatten(1, (self.side**2, self.settings.code_dim)))

    # --- training ---

    def draw(self, x: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the order in which each image is read, and the seed of codes drawn anew."""
        return {
            "order": torch.randint(self.settings.orders, (len(x),), generator=generator),
            "seed": torch.randint(2**31, (1,), generator=generator),
        }

    def losses(self, x: Tensor, **draws: Tensor) -> dict[str, Tensor]:
        """Return the absolute error, as in [0, 1], and the commitment to the codes."""
        z = self._features(x)
        with torch.autocast(x.device.type, enabled=False):
            codes, commitment = self.codebook(z)
        self._given = (z.detach().flatten(0, 1), int(draws["seed"]))
        error = (self._rebuild(codes).float() - x).abs().mean() / 2
        return {"reconstruction": error, "commitment": _COMMITMENT * commitment}

    def _move_codes(self, losses: dict[str, float]) -> None:
        """Let the codes follow the step's features, or place them anew."""
        features, seed = self._given
        early = self.trained_share < _PLACE_UNTIL * self.settings.first_stage
        place = self.moved == 0 or (early and self.moved % _PLACE_EVERY == 0)
        move = self.codebook.place if place else self.codebook.learn
        move(features, torch.Generator().manual_seed(seed))
        self.moved += 1

    def token_losses(self, x: Tensor, **draws: Tensor) -> dict[str, Tensor]:
        """Return the mean -log p of the tokens, each image in its own order."""
        with torch.no_grad(), frozen(self.encoder):
            tokens = self.tokens(x)
        log_p = self.transformer(tokens, self.orders[draws["order"]])
        return {"surprise": -log_p.mean()}

    def phases(self) -> list[Phase]:
        """Train the autoencoder, then the transformer."""
        until = self.settings.first_stage
        first = [*self.encoder.parameters(), *self.decoder.parameters()]
        second = list(self.transformer.parameters())
        return [
            Phase("", first, self.losses, self._move_codes, span=(0.0, until)),
            Phase("token ", second, self.token_losses, clip=1.0, span=(until, 1.0)),
        ]

    # --- what is usual ---

    @property
    def needs_held_out(self) -> bool:
        """Whether what is wrong is decided by images that are not trained on."""
        asked: bool = self.settings.held_out
        return asked

    @torch.no_grad()
    def watch(self, held: Tensor, seen: Tensor) -> None:
        """Look at held-out images once the transformer is trained."""
        if self.trained_share >= self.settings.first_stage:
            self._look_at(held)

    @torch.no_grad()
    def finish(self, seen: Tensor) -> None:
        """Look at training images, unless others were kept aside."""
        if not self.settings.held_out:
            self._look_at(seen)

    def _look_at(self, normal: Tensor) -> None:
        with frozen(self):
            parts = [self.log_p(self.tokens(x)) for x in normal.split(64)]
        log_p = torch.cat(parts, 1)  # (orders, n, T)
        self.usual.copy_(-log_p.mean(1))
        self.rare.copy_(_below(log_p, self.settings.alpha))

    # --- scoring ---

    def log_p(self, tokens: Tensor) -> Tensor:
        """Return log p of each token (B, T) after those before it, by order: (orders, B, T)."""
        return torch.stack([self.transformer(tokens, order) for order in self.orders])

    def anomaly_score(self, x: Tensor) -> Tensor:
        """Return how unlikely the tokens are, or how far from usual (B,)."""
        return self._score(self.log_p(self.tokens(x)))

    def _score(self, log_p: Tensor) -> Tensor:
        surprise = -log_p
        if self.settings.score == "typical":
            surprise = (surprise - self.usual[:, None]).abs()
        return surprise.mean((0, 2))

    def heal(self, tokens: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
        """Return healed tokens and which were wrong, (orders, B, T) each.

        Args:
            tokens: (B, T).
            log_p: of `log_p`.
        """
        wrong = log_p < self.rare[:, None]
        pairs = zip(wrong, self.orders, strict=True)
        healed = [self.transformer.heal(tokens, w, o) if w.any() else tokens for w, o in pairs]
        return torch.stack(healed), wrong

    def score_and_map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return how unlikely the tokens are (B,), and what healing them changes (B, S, S)."""
        tokens = self.tokens(x)
        log_p = self.log_p(tokens)
        healed, wrong = self.heal(tokens, log_p)
        found = torch.zeros_like(x[:, 0], dtype=torch.float32)
        for t, w in zip(healed, wrong, strict=True):
            where = w.float().unflatten(1, (1, self.side, self.side))
            where = F.interpolate(where, size=x.shape[2:], mode="bilinear", align_corners=False)
            found += (x - self.image(t)).abs().mean(1) * where[:, 0]
        return self._score(log_p), found / len(healed)

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Return the difference from the healed image, where it was healed (B, S, S)."""
        return self.score_and_map(x)[1]

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return the image of the healed tokens, the mean over orders."""
        tokens = self.tokens(x)
        healed, _ = self.heal(tokens, self.log_p(tokens))
        return torch.stack([self.image(t) for t in healed]).mean(0)


def _below(log_p: Tensor, alpha: float) -> Tensor:
    """Return below which value a token's p among n normal images is at most alpha: (orders, T).

    p = (1 + number of images that are as unlikely) / (n + 1). Where n < 1 / alpha - 1 nothing could
    be wrong at a place by itself, and all places are joined.

    Args:
        log_p: (orders, n, T).
        alpha: in (0, 1).
    """
    found = log_p
    if int(alpha * (found.shape[1] + 1)) < 1:
        joined = found.flatten(1)[:, :, None]
        found = joined.expand(-1, -1, log_p.shape[2])
    rank = int(alpha * (found.shape[1] + 1))
    if rank < 1:
        return torch.full_like(log_p[:, 0], -torch.inf)
    return found.kthvalue(rank, 1).values
