"""Pictures of a scored image: image, reconstruction, and the anomaly map over the image.

One colour scale serves all images. It is fixed when the model is fitted, from normal images that
the model has not seen: below ``quiet``, the level that the largest value of a normal image's map
exceeds in 1 of 20 images, nothing is painted; at ``full`` the colour is at its end. A normal
image therefore looks normal, and two pictures can be compared.

Pictures show *calibrated* maps (`normalis.calibration.maps`): each place judged by what normal
images have there. Runs from before there were such maps have a scale that smooths raw ones.
Files of maps, scores and pixel metrics are of raw maps.

The colours are matplotlib's *inferno*: even steps of lightness, readable without colour vision and
in print.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from normalis.calibration.colours import ColourScale

__all__ = ["contoured", "grey", "heat", "numbered", "outline", "over", "render", "resize_map"]

PANEL = 320  # side of a panel's longer edge, in pixels
_MARGIN, _BAR, _HEADER = 8, 74, 30
_INK, _PAPER = (225, 225, 225), (18, 18, 22)
# Cyan is none of the colours of the map, and any colour vision tells it apart from them.
_LINE, _RING, _AROUND = (0, 229, 255), 11, 0.75


@cache
def _lut() -> NDArray[np.uint8]:
    from matplotlib import colormaps

    # The darkest fifth of inferno is black on a dark image: start where it is visible.
    colours = colormaps["inferno"](np.linspace(0.3, 1.0, 256))[:, :3]
    table: NDArray[np.uint8] = (255 * colours).round().astype(np.uint8)
    return table


def heat(anomaly_map: NDArray[Any], scale: ColourScale) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return colours (H, W, 3) and opacities (H, W) in [0, 1] of an anomaly map (H, W)."""
    level = (anomaly_map - scale.quiet) / max(scale.full - scale.quiet, 1e-12)
    index = (255 * np.clip(np.nan_to_num(level), 0, 1)).astype(np.uint8)
    opacity = np.where(level > 0, 0.55 + 0.45 * np.clip(level, 0, 1), 0.0)
    return _lut()[index], opacity


def grey(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return (C, H, W) pixels with nominal range [0, 1] as (H, W, 3), clipped for display only."""
    image = np.clip(np.nan_to_num(pixels), 0, 1)
    image = np.repeat(image, 3, axis=0) if len(image) == 1 else image[:3]
    return (255 * image).round().astype(np.uint8).transpose(1, 2, 0)


def over(pixels: NDArray[Any], anomaly_map: NDArray[Any], scale: ColourScale) -> NDArray[np.uint8]:
    """Return the map painted over the image, (H, W, 3)."""
    colours, opacity = heat(anomaly_map, scale)
    mixed = grey(pixels) * (1 - opacity[..., None]) + colours * opacity[..., None]
    found: NDArray[np.uint8] = mixed.round().astype(np.uint8)
    return found


def numbered(place: str) -> str:
    """Return what the name of a map or picture says of a slice, frame or row of its file.

    Args:
        place: as in ``scores.csv``: empty, ``3``, or with the array it is of, ``validation_3``.

    Example:
        >>> numbered("3"), numbered("validation_3"), numbered("")
        ('_0003', '_validation_0003', '')
    """
    array, _, number = place.rpartition("_")
    return f"{'_' if array else ''}{array}_{int(number):04d}" if number.isdecimal() else ""


def resize_map(anomaly_map: NDArray[Any], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return a map (S, S) at an image's own geometry (H, W), bilinear."""
    if anomaly_map.shape == tuple(shape):
        return np.asarray(anomaly_map, np.float32)
    image = Image.fromarray(np.asarray(anomaly_map, np.float32))
    return np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR))


def outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels of areas (H, W) that touch what is outside; the picture's edge does not."""
    from scipy.ndimage import binary_erosion

    return np.asarray(mask & ~binary_erosion(mask, np.ones((3, 3)), border_value=1))


def contoured(
    picture: NDArray[np.uint8], mask: NDArray[np.bool_], colour: tuple[int, int, int]
) -> NDArray[np.uint8]:
    """Return a picture (H, W, 3) with the outline of areas (H, W): a line, dark beside it."""
    from scipy.ndimage import binary_dilation

    line, drawn = outline(mask), picture.copy()
    drawn[binary_dilation(line, np.ones((3, 3)))] //= 3
    drawn[line] = colour
    return drawn


def render(
    pixels: NDArray[Any],
    anomaly_map: NDArray[Any],
    *,
    scale: ColourScale,
    reconstruction: NDArray[Any] | None = None,
    title: str = "",
) -> Image.Image:
    """Draw image, reconstruction and map side by side, with the colour bar.

    The map is shown twice. On the model's scale nothing is painted that normal images have, and a
    cyan line goes around what is above. Relative to the image itself, without colour: a ring at
    its highest place and a line around what reaches three quarters of that, so that every picture
    says what stands out most even if all of it is quiet.

    Args:
        pixels: (C, H, W) with nominal range [0, 1], at the image's own geometry.
        anomaly_map: (h, w) calibrated, any size; stretched over the image.
        scale: the model's colour scale.
        reconstruction: (C, h, w) with nominal range [0, 1]; left out where None.
        title: line above, for instance file name, score and p-value.
    """
    size = _panel_size(pixels.shape[1:])
    shown = _fit(grey(pixels), size, Image.Resampling.BICUBIC)
    panels = [("image", shown)]
    if reconstruction is not None:
        panels.append(("rebuilt", _fit(grey(reconstruction), size, Image.Resampling.BICUBIC)))
    stretched = resize_map(np.asarray(anomaly_map, np.float32), (size[1], size[0]))
    base = np.asarray(shown).transpose(2, 0, 1) / 255
    absolute = contoured(over(base, stretched, scale), stretched > scale.quiet, _LINE)
    panels.append(("above normal images", Image.fromarray(absolute)))
    panels.append(("highest place", _relative(np.asarray(shown), stretched)))
    return _compose(panels, scale, size, title)


def _relative(picture: NDArray[np.uint8], stretched: NDArray[np.float32]) -> Image.Image:
    """Mark an image's own highest place; a map of one value has none."""
    from scipy.ndimage import label

    highest = stretched.max()
    if not highest > stretched.min():
        return Image.fromarray(picture)
    areas, _ = label(stretched >= _AROUND * highest)
    own = areas == areas.flat[stretched.argmax()]
    return _ringed(contoured(picture, own, _INK), stretched)


def _ringed(picture: NDArray[np.uint8], stretched: NDArray[np.float32]) -> Image.Image:
    """Ring the highest place of a map."""
    image = Image.fromarray(picture)
    y, x = map(int, np.unravel_index(stretched.argmax(), stretched.shape))
    draw = ImageDraw.Draw(image)
    for radius, colour, width in ((_RING + 1, (0, 0, 0), 4), (_RING, (255, 255, 255), 2)):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=width)
    return image


def _panel_size(shape: tuple[int, ...]) -> tuple[int, int]:
    factor = PANEL / max(shape)
    return max(1, round(shape[1] * factor)), max(1, round(shape[0] * factor))


def _fit(image: NDArray[np.uint8], size: tuple[int, int], how: Image.Resampling) -> Image.Image:
    return Image.fromarray(image).resize(size, how)


def _compose(
    panels: list[tuple[str, Image.Image]], scale: ColourScale, size: tuple[int, int], title: str
) -> Image.Image:
    width = len(panels) * (size[0] + _MARGIN) + _MARGIN + _BAR
    canvas = Image.new("RGB", (width, max(size[1], 140) + _HEADER + 2 * _MARGIN + 16), _PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((_MARGIN, 8), title, fill=_INK, font=ImageFont.load_default(14))
    for i, (name, panel) in enumerate(panels):
        left = _MARGIN + i * (size[0] + _MARGIN)
        canvas.paste(panel, (left, _HEADER + _MARGIN))
        at = (left, _HEADER + _MARGIN + size[1] + 3)
        draw.text(at, name, fill=_INK, font=ImageFont.load_default(12))
    _draw_bar(canvas, draw, width - _BAR, max(size[1], 140), scale)
    return canvas


def _draw_bar(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, left: int, height: int, scale: ColourScale
) -> None:
    top, font = _HEADER + _MARGIN, ImageFont.load_default(11)
    column = _lut()[np.linspace(255, 0, height).astype(int)]
    canvas.paste(Image.fromarray(np.repeat(column[:, None], 12, axis=1)), (left, top))
    draw.text((left + 16, top - 2), f"{scale.full:.3g}", fill=_INK, font=font)
    draw.text((left + 16, top + height - 12), f"{scale.quiet:.3g}", fill=_INK, font=font)
    note = f"1 in {1 / scale.rate:.0f}" if scale.rate else "about\n1 in 20"
    whose = "normals" if scale.held_out else "training"
    draw.text(
        (left + 16, top + height - (38 if scale.rate else 51)),
        f"{note}\n{whose}",
        fill=_INK,
        font=font,
    )
