"""How every file of a folder is read, or why it is refused.

Rewrites the tables of docs/reference/formats.md.

python benchmarks/formats.py DATA_FOLDER
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from normalis.errors import UnreadableImageError
from normalis.images import probe, read_frames

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "studies"))
from pages import fill

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "formats.md"


def describe(path: Path) -> str:
    """Return one line on how a file is read."""
    try:
        known, frames = probe(path), list(read_frames(path))
    except UnreadableImageError as error:
        return f"refused: {error.reason}"
    pixels = [frame.pixels for frame in frames]
    low, high = min(p.min() for p in pixels), max(p.max() for p in pixels)
    shape = " x ".join(map(str, pixels[0].shape[1:]))
    many = f"{len(frames)} images, " if len(frames) > 1 else ""
    values = f"{pixels[0].dtype}, {low:.4g} to {high:.4g}"
    return f"{known.format}, {known.bits} bit: {many}{shape} {values}"


def twins(dicom: Path) -> list[str]:
    """Return sentences on files that show the same image in another encoding."""

    def pixels(name: str) -> np.ndarray:
        return next(read_frames(dicom / name)).pixels.astype(float)

    lossless, lossy = pixels("RG1_UNCR.dcm"), pixels("RG1_J2KI.dcm")
    share = np.abs(lossless - lossy).max() / np.ptp(lossless)
    plain = next(p for p in sorted(dicom.glob("1.2.276*.dcm")))
    inverse = np.abs(pixels(plain.name) + pixels("Fake_MONOHR1.dcm") - 255).max()
    small = ("MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm")
    small = (*small, "MR_small_jpeg_ls_lossless.dcm")
    same = all(np.array_equal(pixels(small[0]), pixels(name)) for name in small[1:])
    return [
        f"* RG1_UNCR and its lossy twin RG1_J2KI differ by {share:.2%} of the range at most.",
        f"* Fake_MONOHR1 is the inverse of its twin; largest difference {inverse:.0f} grey levels.",
        f"* The four MR_small files are {'equal' if same else 'NOT equal'}.",
    ]


def main() -> None:
    """Print the tables and write them into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with dicom/ and nifti/")
    folder = parser.parse_args().data
    lines = []
    for kind in ("dicom", "nifti"):
        files = [p for p in sorted((folder / kind).iterdir()) if p.suffix != ".csv"]
        rows = [f"| {p.name} | {describe(p).replace('|', '/')} |" for p in files]
        lines += [f"## {kind}", "", "| file | read as |", "| --- | --- |", *rows, ""]
    text = "\n".join([*lines, "## Twins", "", *twins(folder / "dicom")])
    fill(PAGE, {"files": text})


if __name__ == "__main__":
    main()
