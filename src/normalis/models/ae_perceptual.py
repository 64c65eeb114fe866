"""The autoencoder trained on, and read by, the features of a fixed network.

    f(x) = (phi(x) - m) / v,    loss = mean map,
    map = resize(mean_c |f(x_hat) - f(x)| / mean |f(x)|)

phi is one layer of a network that somebody else trained: VGG19's relu4_2 as in the authors' code,
or any torch module with named layers. m and v are the mean and the variance (not the deviation) of
each feature over that network's own training images. Neither weights nor statistics come with this
package: their licences are their owners', and so is the choice. They are read from files once and
saved with the model, which later needs the files no more. relu4_2 has one eighth of the image's
resolution, and so has the map.

Without a file of statistics m = 0 and v = 1, which is a deviation and lets loud features rule.

Reference: Shvetsova et al., "Anomaly detection in medical imaging with deep perceptual
autoencoders", IEEE Access 9 (2021).

Use: where weights of a feature network can be had and texture matters more than intensity.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalis.errors import SettingsError
from normalis.models.backbone import EncoderDecoder
from normalis.models.base import ModelSettings, Phase
from normalis.models.vgg19 import VGG19
from normalis.shelf import import_named, restoring

__all__ = ["PerceptualAE", "PerceptualAESettings"]

_WHY = (
    "ae-perceptual compares images in the features of a network that was trained elsewhere, and "
    "this package brings no such weights"
)


@dataclass(frozen=True, kw_only=True)
class PerceptualAESettings(ModelSettings):
    """Settings of the perceptual autoencoder.

    Args:
        weights: file with the feature network's weights, ``.safetensors`` or ``.pt`` (read without
            executing what it holds). Required.
        statistics: file of the same kinds with ``mean`` and ``var`` per feature, or with a pair of
            them under the layer's name (``features.22`` or ``r42``).
        network: ``vgg19``, or ``module:callable`` that returns a torch module, which gets images
            in [-1, 1] with ``channels`` channels.
        layer: name of the layer whose output is compared.
    """

    weights: str = ""
    statistics: str = ""
    network: str = "vgg19"
    layer: str = "features.22"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.weights:
            raise SettingsError(
                f"{_WHY}: set weights to a file (.safetensors or .pt) for {self.network}"
            )


class PerceptualAE(EncoderDecoder):
    """Autoencoder with a feature loss; the feature network is fixed."""

    Settings: ClassVar[Any] = PerceptualAESettings
    mean: Tensor
    var: Tensor

    def __init__(self, settings: PerceptualAESettings) -> None:
        super().__init__(settings)
        self.network = _build_network(settings).requires_grad_(False).eval()
        self.register_buffer("mean", torch.zeros(1, 1, 1))
        self.register_buffer("var", torch.ones(1, 1, 1))
        # A saved model brings its weights along and may be far from the file they came from.
        self.ready = not restoring() and Path(settings.weights).is_file()
        if self.ready:
            _load_weights(self.network, settings)
            self.mean, self.var = _load_statistics(self.network, settings)

    def train(self, mode: bool = True) -> Self:
        """Switch the autoencoder's mode; the feature network always evaluates."""
        super().train(mode)
        self.network.eval()
        return self

    def features(self, x: Tensor) -> Tensor:
        """Return the normalised features f(x): (B, C, S, S) -> (B, K, h, w), float32."""
        self._check_ready()
        seen: list[Tensor] = []
        layer = self.network.get_submodule(self.settings.layer)
        # Cloned, for a layer that follows may work in place.
        handle = layer.register_forward_hook(lambda _m, _i, output: seen.append(output.clone()))
        try:
            self.network(x)
        finally:
            handle.remove()
        return (seen[0].float() - self.mean) / self.var

    def error(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """Return the relative error of the features, (B, h, w)."""
        f, f_hat = self.features(x), self.features(x_hat)
        scale = f.abs().mean((1, 2, 3)).detach()
        return (f_hat - f).abs().mean(1) / scale[:, None, None]

    def losses(self, x: Tensor, **draws: Tensor) -> dict[str, Tensor]:
        """Return the mean relative error of the features."""
        return {"perceptual": self.error(x, self(x)).mean()}

    def phases(self) -> list[Phase]:
        """Train everything but the feature network."""
        self._check_ready()
        return [Phase("", [p for p in self.parameters() if p.requires_grad], self.losses)]

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Return the error of the features, resized to the image (B, H, W)."""
        coarse = self.error(x, self.reconstruct(x))[:, None]
        return F.interpolate(coarse, size=x.shape[-2:], mode="bilinear")[:, 0]

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over parameters, buffers and the feature network's weights."""
        self.mean, self.var = state["mean"].clone(), state["var"].clone()
        super().load_state(state)
        self.ready = True

    def _check_ready(self) -> None:
        if not self.ready:
            raise SettingsError(f"{_WHY}: no file {self.settings.weights!r} (setting weights)")


def _build_network(settings: PerceptualAESettings) -> nn.Module:
    """Return the feature network without its weights, and check that it has the layer."""
    if settings.network == "vgg19":
        index = settings.layer.removeprefix("features.")
        if not index.isdigit() or int(index) > 36:
            raise SettingsError(
                f"layer of vgg19 must be features.0 to features.36, got {settings.layer!r}"
            )
        return VGG19(int(index))
    try:
        network: nn.Module = import_named(settings.network, what="network", known=False)()
        network.get_submodule(settings.layer)
    except (AttributeError, TypeError, ValueError) as error:  # a SettingsError is a ValueError
        raise SettingsError(
            "network must be vgg19 or module:callable returning a torch module with the named "
            f"layer, got network={settings.network!r}, layer={settings.layer!r}: {error}"
        ) from error
    return network


def _read(path: str, setting: str) -> Mapping[str, Any]:
    """Read named tensors; nothing that the file holds is executed."""
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise SettingsError(f"{setting}: {path} cannot be read: {error}") from error
    if not isinstance(loaded, Mapping):
        raise SettingsError(f"{setting}: {path} must hold named tensors, got {type(loaded)}")
    return loaded


def _load_weights(network: nn.Module, settings: PerceptualAESettings) -> None:
    weights = _read(settings.weights, "weights")
    try:
        missing = network.load_state_dict(weights, strict=False).missing_keys
    except RuntimeError as error:  # a shape differs
        raise SettingsError(
            f"weights: {settings.weights} is of another network: {error}"
        ) from error
    if missing:
        raise SettingsError(
            f"weights: {settings.weights} lacks {len(missing)} tensors of {settings.network}, "
            f"the first is {missing[0]!r}"
        )


def _load_statistics(network: nn.Module, settings: PerceptualAESettings) -> tuple[Tensor, Tensor]:
    """Return mean and variance per feature, (K, 1, 1) each."""
    if not settings.statistics:
        return torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    read = _read(settings.statistics, "statistics")
    keys = [settings.layer]
    if isinstance(network, VGG19):
        keys.append(network.names[int(settings.layer.removeprefix("features."))])
    pair = next((read[key] for key in keys if key in read), None)
    if pair is None and "mean" in read and "var" in read:
        pair = read["mean"], read["var"]
    if pair is None:
        raise SettingsError(
            f"statistics: {settings.statistics} must hold mean and var, or a pair of them under "
            f"{' or '.join(keys)}; it holds {', '.join(list(read)[:8])}"
        )
    mean, var = (part.float().reshape(-1, 1, 1) for part in pair)
    if not (var > 0).all():
        raise SettingsError(f"statistics: every variance in {settings.statistics} must be above 0")
    return mean, var
