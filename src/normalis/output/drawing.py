"""Pictures of scored images: beside their maps, small for the report, large for its viewer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from normalis.calibration.colours import ColourScale
from normalis.files import visible
from normalis.output.image_files import ImageFiles, do_all, slice_label
from normalis.output.overlays import grey, render
from normalis.output.pictures import write_pictures
from normalis.storage import write_atomically

if TYPE_CHECKING:
    from normalis.datasets import Sample
    from normalis.fitted import FittedDetector
    from normalis.scoring import Detail

__all__ = ["THUMBNAIL", "draw", "save", "thumbnail"]

#: Side of a picture in the report, in pixels.
THUMBNAIL = 160


def draw(
    detector: FittedDetector,
    files: ImageFiles,
    table: Sequence[Mapping[str, Any]],
    samples: Sequence[Sample],
    said: Callable[[Path], str],
    drawn: Callable[[int, int], None] | None = None,
) -> None:
    """Draw pictures of some rows; their files are read once more, at full size.

    Args:
        detector: the one that scored.
        files: where pictures go.
        table: the rows, as in scores.csv.
        samples: their files.
        said: how tables name a file.
        drawn: called with (pictures drawn, pictures in all).
    """
    rows = {(r["path"], r["slice"]): r for r in table}

    def drawings() -> Iterator[Callable[[], None]]:
        for seen in detector.detail(list(dict.fromkeys(samples))):
            place = slice_label(seen.row.sample, seen.row.slice_index)
            row = rows.get((said(seen.row.path), place))
            if row is not None:
                yield partial(_picture, detector, files, seen, row)

    do_all(drawings(), done=None if drawn is None else lambda number: drawn(number, len(rows)))


def _picture(
    detector: FittedDetector, files: ImageFiles, seen: Detail, row: Mapping[str, Any]
) -> None:
    where, scale = seen.row, detector.colour_scale
    p_value = "" if row["p_value"] == "" else f"   p = {row['p_value']:.3g}"
    place = "" if row["slice"] == "" else f" [{row['slice']}]"
    calibrated = detector.calibrated(seen.anomaly_map)
    picture = render(
        seen.original,
        calibrated,
        scale=scale,
        reconstruction=seen.reconstruction,
        title=f"{visible(where.path.name)}{place}   score {row['anomaly_score']:.4g}{p_value}",
    )
    path = files.name("overlays", where, ".png")
    save(path, picture)
    strip = thumbnail(seen, calibrated, scale)
    path = files.name("thumbnails", where, ".png")
    save(path, strip)
    write_pictures(files, seen, calibrated)


def thumbnail(seen: Detail, calibrated: NDArray[np.float32], scale: ColourScale) -> Image.Image:
    """Return image, reconstruction and map side by side in grey, each `THUMBNAIL` high.

    The map is the red channel's: 0 at ``quiet`` and below, 255 at ``full``.
    """
    size = (THUMBNAIL, THUMBNAIL)
    rebuilt = seen.original if seen.reconstruction is None else seen.reconstruction
    level = (calibrated - scale.quiet) / max(scale.full - scale.quiet, 1e-12)
    level = (255 * np.clip(level, 0, 1)).round().astype(np.uint8)
    parts = [Image.fromarray(grey(seen.original)).convert("L"), Image.fromarray(grey(rebuilt))]
    strip = Image.new("L", (3 * THUMBNAIL, THUMBNAIL))
    for i, part in enumerate([*parts, Image.fromarray(level)]):
        strip.paste(part.convert("L").resize(size, Image.Resampling.BILINEAR), (i * THUMBNAIL, 0))
    return strip


def save(path: Path, picture: Image.Image) -> None:
    """Write a picture, atomically."""
    write_atomically(path, lambda p: picture.save(p, format="PNG", compress_level=1), tidy=False)
