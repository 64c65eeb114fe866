r"""Head-like slices drawn from a known number of continuous factors, with lesions and their masks.

Real images have an intrinsic dimension that nobody knows. Here it is chosen: the first ``factors``
of `FACTORS` vary, uniformly and independently in [-1, 1], and the others stay at 0. An image is

.. math:: x = g(t), \qquad t \in [-1, 1]^{k}, \qquad g \in C^{\infty}

on the pixel grid, for every edge is a logistic function about a pixel wide. Without noise the
images therefore lie on a smooth manifold of dimension ``factors``.

The picture follows a T1-weighted axial slice: scalp, skull, fluid, folded grey matter, white
matter, deep grey nuclei, ventricles, and a smooth bias field. It is no anatomical model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normalis.datasets.atomic import new_folder
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

FloatArray = NDArray[np.float32]

# What varies, in this order: `factors=3` varies the first three.
FACTORS: tuple[str, ...] = (
    "aspect",  # of the head, width over height
    "size",
    "rotation",
    "ventricle_size",
    "contrast",  # between grey and white matter
    "asymmetry",  # midline bowed to one side, one ventricle larger than the other
    "bias_x",  # bias field, left to right
    "bias_y",  # bias field, top to bottom
    "shift_x",
    "shift_y",
    "skull_thickness",
    "cortex_thickness",
    "fold_phase",  # folds of the cortex wander around the head
    "fold_depth",
    "ventricle_spread",  # how far the horns bend away from the midline
    "scalp_brightness",
)

LESIONS: tuple[str, ...] = ("bright", "dark", "ring", "diffuse", "texture")

_CHUNK = 64  # images drawn at once, so that the intermediate arrays stay in the processor's cache


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


def render(factors: NDArray[Any], *, image_size: int = 64) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Draw the images that belong to given factors; the map :math:`g` of this module.

    Args:
        factors: (N, K) with K at most 16, each in [-1, 1]; those not given are 0.
        image_size: side S, in pixels.

    Returns:
        Images (N, S, S) in [0, 1] and their brain (N, S, S).
    """
    factors = np.asarray(factors, dtype=np.float32)
    if factors.ndim != 2 or not 1 <= factors.shape[1] <= len(FACTORS):
        raise SettingsError(f"factors must be (N, 1 to {len(FACTORS)}), got {factors.shape}")
    full = np.zeros((len(factors), len(FACTORS)), dtype=np.float32)
    full[:, : factors.shape[1]] = factors
    images = np.empty((len(full), image_size, image_size), dtype=np.float32)
    brain = np.empty(images.shape, dtype=bool)
    for start in range(0, len(full), _CHUNK):
        part = slice(start, start + _CHUNK)
        images[part], brain[part] = _draw(full[part], image_size)
    return images, brain


def _draw(factors: FloatArray, size: int) -> tuple[FloatArray, NDArray[np.bool_]]:
    f = dict(zip(FACTORS, factors.T[:, :, None, None], strict=True))
    pixel = np.float32(2 / size)
    edge = 0.75 * pixel  # width of every edge: sharp to look at, smooth to differentiate
    axis = (np.arange(size, dtype=np.float32) + 0.5) * pixel - 1
    page_x, page_y = axis[None, None, :], axis[None, :, None]

    # Into the head's own frame: shift, rotate, and divide by the half axes.
    turn = 0.22 * f["rotation"]
    cos, sin = np.cos(turn), np.sin(turn)
    dx, dy = page_x - 0.05 * f["shift_x"], page_y - 0.05 * f["shift_y"]
    scale = 0.80 + 0.07 * f["size"]
    half_x = scale * (0.84 + 0.07 * f["aspect"])
    half_y = scale * (1.04 - 0.04 * f["aspect"])
    x = (cos * dx + sin * dy) / half_x
    y = (cos * dy - sin * dx) / half_y
    radius = np.sqrt(x * x + y * y + np.float32(1e-4))
    step = edge / scale  # an edge's width in the head's frame

    skull = 0.075 + 0.025 * f["skull_thickness"]
    scalp_in = np.float32(0.94)
    skull_in = scalp_in - skull
    brain = _inside(skull_in - radius, step)
    cortex = skull_in - 0.035

    # Folds: their number is fixed, their depth and place vary. 15 + 9 is odd enough to look alive.
    angle = np.arctan2(x, y)
    phase = 0.25 * f["fold_phase"]
    fold = np.cos(15 * angle + 6 * phase) + 0.7 * np.cos(9 * angle - 5 * phase + 1)
    depth = 0.032 + 0.022 * f["fold_depth"]
    grey = _inside(cortex - depth * (1 - 0.6 * fold) - radius, step)
    thickness = 0.13 + 0.06 * f["cortex_thickness"]
    white = _inside(cortex - thickness + 1.3 * depth * fold - radius, 1.5 * step)

    # Inside: the midline bows, the two ventricles are ellipses that lean away from it.
    bow = 0.07 * f["asymmetry"]
    inner_x = x - bow * (1 - y * y)
    # Never narrower than a pixel, which would alias and make a rough manifold of a smooth one.
    thin = np.maximum(0.022, step)
    fissure = 0.022 / thin * np.exp(-((inner_x / thin) ** 2)) * _inside(y * y - 0.18, 0.04)
    lean = 0.30 + 0.45 * f["ventricle_spread"]
    swell = 0.30 + 0.09 * f["ventricle_size"]
    ventricles = _ventricle(inner_x, y, swell * (1 + 0.22 * f["asymmetry"]), lean, step, 1)
    ventricles = ventricles + _ventricle(
        inner_x, y, swell * (1 - 0.22 * f["asymmetry"]), lean, step, -1
    )
    nuclei = np.exp(-(((inner_x - 0.27) / 0.10) ** 2)) + np.exp(-(((inner_x + 0.27) / 0.10) ** 2))
    nuclei = nuclei * np.exp(-(((y - 0.10) / 0.17) ** 2))

    level_grey = 0.53 - 0.06 * f["contrast"]
    level_white = 0.70 + 0.06 * f["contrast"]
    fluid = np.float32(0.17)
    tissue = level_grey + (level_white - level_grey) * white * (1 - 0.75 * nuclei)
    tissue = fluid + (tissue - fluid) * grey * (1 - fissure) * (1 - ventricles)

    scalp = (0.80 + 0.12 * f["scalp_brightness"]) * _inside(radius - scalp_in, step)
    head = _inside(1 - radius, step)
    shell = head * (np.float32(0.06) + scalp)
    bias = 1 + 0.16 * (f["bias_x"] * page_x + f["bias_y"] * page_y)
    image = (shell * (1 - brain) + tissue * brain) * bias
    return np.clip(image, 0, 1).astype(np.float32), radius < skull_in


def _inside(distance: NDArray[Any], width: Any) -> FloatArray:
    """Logistic edge: 1 far inside (positive distance), 0 far outside."""
    found: FloatArray = (0.5 + 0.5 * np.tanh((0.5 / width) * distance)).astype(np.float32)
    return found


def _ventricle(
    x: NDArray[Any], y: NDArray[Any], swell: Any, lean: Any, step: Any, side: int
) -> FloatArray:
    cx = side * x - 0.06 - 0.25 * swell
    # The horns bend outwards at the front and at the back.
    along = y + 0.02
    across = cx - np.sin(lean) * along * along
    distance = 1 - np.sqrt((across / (0.32 * swell)) ** 2 + (along / (1.05 * swell)) ** 2 + 1e-4)
    return _inside(0.32 * swell * distance, step)


def add_lesions(
    images: NDArray[Any],
    *,
    kind: str,
    scale_px: float,
    contrast: float,
    seed: int,
    brain: NDArray[np.bool_] | None = None,
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Put one lesion into each image.

    Args:
        images: (N, S, S) in [0, 1].
        kind: ``bright`` or ``dark`` blob, ``ring`` (bright rim, dark core), ``diffuse`` (no edge),
            or ``texture`` (changed pattern, same mean).
        scale_px: radius in pixels; for ``diffuse`` the radius at half its height.
        contrast: largest change of intensity, in units of the range.
        seed: of place and shape.
        brain: (N, S, S), where lesions may lie. By default the part of the page that is brain in
            every phantom.

    Returns:
        New images (N, S, S), clipped to [0, 1], and masks (N, S, S): where the lesion has at least
        half its strength.

    Raises:
        SettingsError: if the kind is unknown, or scale or contrast is not positive.
    """
    images = np.asarray(images, dtype=np.float32)
    if kind not in LESIONS:
        raise SettingsError(f"kind must be one of {', '.join(LESIONS)}, got {kind!r}")
    if images.ndim != 3:
        raise SettingsError(f"images must be (N, S, S), got {images.shape}")
    if not (scale_px > 0 and contrast > 0):
        raise SettingsError(
            f"scale_px and contrast must be positive, got {scale_px} and {contrast}"
        )
    rng = np.random.default_rng(seed)
    brain = _common_brain(images.shape) if brain is None else np.asarray(brain, dtype=bool)
    distance = _distance(rng, brain, scale_px)
    profile, body = _profiles(kind, distance, scale_px, rng)
    masks = (body >= 0.5) & brain
    change = np.where(brain, np.float32(contrast) * profile, 0)
    return np.clip(images + change, 0, 1).astype(np.float32), masks


def _common_brain(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Ellipse that is inside the brain whatever the factors; its half axes were measured."""
    y, x = ((np.arange(s, dtype=np.float32) + 0.5) * 2 / s - 1 for s in shape[1:])
    ellipse = (x[None, :] / 0.40) ** 2 + (y[:, None] / 0.54) ** 2 < 1
    return np.broadcast_to(ellipse, shape)


def _distance(rng: np.random.Generator, brain: NDArray[np.bool_], scale_px: float) -> FloatArray:
    """Distance from a random point of each brain, in units of a wobbling radius: 1 is the edge."""
    n, height, width = brain.shape
    weights = rng.random(brain.shape, dtype=np.float32) * brain
    centre = weights.reshape(n, -1).argmax(axis=1)  # a uniform draw among the brain's pixels
    cy, cx = (c[:, None, None] for c in np.unravel_index(centre, (height, width)))
    dy = np.arange(height, dtype=np.float32)[None, :, None] - cy
    dx = np.arange(width, dtype=np.float32)[None, None, :] - cx
    angle = np.arctan2(dy, dx)
    wobble = np.ones_like(angle)
    for order in (2, 3, 5):
        phase = rng.uniform(0, 2 * np.pi, size=(n, 1, 1))
        depth = rng.uniform(0, 0.3 / order, size=(n, 1, 1))
        wobble += depth * np.cos(order * angle + phase)
    found: FloatArray = (np.sqrt(dy * dy + dx * dx) / (scale_px * wobble)).astype(np.float32)
    return found


def _profiles(
    kind: str, distance: FloatArray, scale_px: float, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Signed change of intensity in [-1, 1], and the lesion's body in [0, 1]."""
    body = _inside(1 - distance, max(0.08, 0.5 / scale_px))
    if kind == "diffuse":
        body = np.exp2(-(distance**2)).astype(np.float32)
    if kind == "dark":
        return -body, body
    if kind == "ring":
        rim = np.exp(-(((distance - 0.8) / 0.22) ** 2))
        core = _inside(0.6 - distance, 0.12)
        return (rim - 0.6 * core).astype(np.float32), body
    if kind == "texture":
        return body * _pattern(distance.shape, max(0.8, 0.2 * scale_px), rng), body
    return body, body


def _pattern(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> FloatArray:
    """Band-passed noise with values in [-1, 1]."""
    from scipy.ndimage import gaussian_filter

    noise = rng.standard_normal(shape, dtype=np.float32)
    band = gaussian_filter(noise, (0, sigma, sigma)) - gaussian_filter(
        noise, (0, 2 * sigma, 2 * sigma)
    )
    found: FloatArray = np.tanh(1.5 * band / band.std()).astype(np.float32)
    return found


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
