r"""Head-like slices drawn from a known number of continuous factors, with lesions and their masks.

Real images have an intrinsic dimension that nobody knows. Here it is chosen: the first ``factors``
of `FACTORS` vary, uniformly and independently in [-1, 1], and the others stay at 0. An image is

.. math:: x = g(t), \qquad t \in [-1, 1]^{k}, \qquad g \in C^{\infty}

on the pixel grid, for every edge is a logistic function about a pixel wide. Without noise the
images therefore lie on a smooth manifold of dimension ``factors``.

How the picture is drawn stands in `normalis.datasets.phantom_drawing`, lesions in
`normalis.datasets.phantom_lesions`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from normalis.datasets.atomic import new_folder
from normalis.datasets.phantom_drawing import FACTORS, FloatArray, render
from normalis.datasets.phantom_lesions import LESIONS, add_lesions
from normalis.errors import SettingsError

__all__ = [
    "FACTORS",
    "LESIONS",
    "PhantomSettings",
    "Phantoms",
    "add_lesions",
    "fill",
    "generate",
    "render",
    "write_demo",
]


@dataclass(frozen=True, kw_only=True)
class PhantomSettings:
    """What is drawn.

    Attributes:
        image_size: side S of the square images, in pixels.
        factors: how many of `FACTORS` vary, 1 to 16: the intrinsic dimension without noise.
        noise: standard deviation of Gaussian noise added to each pixel, in units of the range.
        seed: of factors and noise.
    """

    image_size: int = 64
    factors: int = 8
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.factors <= len(FACTORS):
            raise SettingsError(f"factors must be 1 to {len(FACTORS)}, got {self.factors}")
        if self.image_size < 16:
            raise SettingsError(f"image_size must be at least 16, got {self.image_size}")
        if not 0 <= self.noise <= 1:
            raise SettingsError(f"noise must be 0 to 1, got {self.noise}")


@dataclass(frozen=True, eq=False, kw_only=True)
class Phantoms:
    """Images and the truth about them.

    Attributes:
        images: (N, S, S) float32 in [0, 1].
        factors: (N, factors) float32 in [-1, 1], in the order of `FACTORS`.
        brain: (N, S, S) bool, the inside of the skull.
        names: names of the factors.
    """

    images: FloatArray
    factors: FloatArray
    brain: NDArray[np.bool_]
    names: tuple[str, ...]


def generate(n: int, settings: PhantomSettings | None = None) -> Phantoms:
    """Draw ``n`` images.

    Args:
        n: number of images N; the first images do not depend on it.
        settings: what is drawn.

    Returns:
        The images, their factors, and where their brain is.
    """
    settings = settings or PhantomSettings()
    if n < 1:
        raise SettingsError(f"n must be at least 1, got {n}")
    # Two streams, so that noise does not change the factors; row by row, so that n does not.
    draws, noise = (np.random.default_rng([settings.seed, stream]) for stream in (0, 1))
    factors = draws.uniform(-1, 1, size=(n, len(FACTORS))).astype(np.float32)
    factors = factors[:, : settings.factors]
    images, brain = render(factors, image_size=settings.image_size)
    if settings.noise:
        images += settings.noise * noise.standard_normal(images.shape, dtype=np.float32)
        np.clip(images, 0, 1, out=images)
    return Phantoms(images=images, factors=factors, brain=brain, names=FACTORS[: settings.factors])


def write_demo(
    folder: str | Path,
    *,
    seed: int = 0,
    image_size: int = 64,
    factors: int = 8,
    noise: float = 0.02,
    train: int = 600,
    normal: int = 100,
    anomalous: int = 100,
) -> Path:
    """Write a small data set of PNG files in the MVTec layout, with masks.

    Args:
        folder: new folder; it appears when all files are written.
        seed: of images and lesions.
        image_size: side in pixels.
        factors: intrinsic dimension, 1 to 16.
        noise: standard deviation of the noise, in units of the range.
        train: images in ``train/good``.
        normal: images in ``test/good``.
        anomalous: images in ``test/lesion``, of all kinds in turn.

    Returns:
        The folder.

    Raises:
        DataError: if the folder exists and is not empty.
    """
    settings = PhantomSettings(image_size=image_size, factors=factors, noise=noise, seed=seed)
    target = Path(folder)
    with new_folder(target) as work:
        fill(work, settings, train=train, normal=normal, anomalous=anomalous)
    return target


def fill(work: Path, settings: PhantomSettings, *, train: int, normal: int, anomalous: int) -> None:
    """Write PNG files in the MVTec layout into an empty folder; arguments as in `write_demo`."""
    drawn = generate(train + normal + anomalous, settings)
    good = drawn.images[train : train + normal]
    _write(work / "train" / "good", drawn.images[:train], _numbers(train, "normal"))
    _write(work / "test" / "good", good, _numbers(normal, "normal"))
    _write_lesions(work, drawn, train + normal, seed=settings.seed)


def _write_lesions(work: Path, drawn: Phantoms, start: int, *, seed: int) -> None:
    images, brain = drawn.images[start:], drawn.brain[start:]
    size = images.shape[-1]
    for place, kind in enumerate(LESIONS):
        rows = slice(place, None, len(LESIONS))
        if not len(images[rows]):
            continue
        changed, masks = add_lesions(
            images[rows],
            kind=kind,
            scale_px=size / (8 if kind == "diffuse" else 11),
            contrast=0.35,
            seed=seed * len(LESIONS) + place,
            brain=brain[rows],
        )
        names = [f"{i:04d}_{kind}.png" for i in range(place, len(images), len(LESIONS))]
        _write(work / "test" / "lesion", changed, iter(names))
        masks_as = masks.astype(np.float32)
        marked = (name.replace(".png", "_mask.png") for name in names)
        _write(work / "ground_truth" / "lesion", masks_as, marked)


def _numbers(count: int, word: str) -> Iterator[str]:
    return (f"{i:04d}_{word}.png" for i in range(count))


def _write(folder: Path, images: FloatArray, names: Iterator[str]) -> None:
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for image, name in zip(np.round(255 * images).astype(np.uint8), names, strict=True):
        Image.fromarray(image).save(folder / name)
