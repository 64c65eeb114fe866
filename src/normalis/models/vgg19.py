"""The convolutions of VGG19, for a feature loss; weights come from a file of the user's.

Layers and their names are those of the common weight files (``features.0.weight``, ...), so that
such a file loads as it is; index 22 is relu4_2. The input is an image in [-1, 1]; grey is repeated
to three channels and normalised with the mean and deviation that the weights were trained with.

Reference: Simonyan and Zisserman, "Very deep convolutional networks for large-scale image
recognition", ICLR 2015, configuration E.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["VGG19"]

_BLOCKS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))  # width, convolutions
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB in [0, 1]


class VGG19(nn.Module):
    """VGG19 up to one of its layers.

    Args:
        last: index of the last layer kept, 0 to 36.

    Attributes:
        names: short name of every kept layer; ``r42`` is the second ReLU of the fourth block.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, last: int = 22) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.names: list[str] = []
        c_in = 3
        for block, (width, repeats) in enumerate(_BLOCKS, 1):
            for i in range(1, repeats + 1):
                layers += [nn.Conv2d(c_in, width, 3, padding=1), nn.ReLU()]
                self.names += [f"c{block}{i}", f"r{block}{i}"]
                c_in = width
            layers.append(nn.MaxPool2d(2))
            self.names.append(f"p{block}")
        self.features = nn.Sequential(*layers[: last + 1])
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the last kept layer's features of images in [-1, 1] with 1 or 3 channels."""
        rgb = x.expand(-1, 3, -1, -1)
        features: Tensor = self.features(((rgb + 1) / 2 - self.mean) / self.std)
        return features
