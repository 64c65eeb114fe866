"""Draw the contact sheet of synthetic families over phantoms: docs/images/synthetic_families.png.

    python studies/synthetic_sheet.py [--arrays FILE.npz --out SHEET.png]

With --arrays the sheet is drawn over the array ``train`` of that file, to be looked at.
"""

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np

from normalis.research.synthetic import SCALES, SYNTHETIC, synthesise

mpl.use("Agg")
from matplotlib import pyplot as plt

DOCS = Path(__file__).resolve().parents[1] / "docs" / "images"


def sheet(images: np.ndarray, out: Path, *, columns: int = 3) -> None:
    names = list(SYNTHETIC)
    figure, axes = plt.subplots(len(names) + 1, 2 * columns, figsize=(2 * columns, len(names) + 1))
    for axis in axes.ravel():
        axis.set_axis_off()
    for j in range(columns):
        axes[0, 2 * j].imshow(images[j], cmap="gray", vmin=0, vmax=1)
    axes[0, 0].set_title("normal", fontsize=8, loc="left", pad=2)
    for i, name in enumerate(names, start=1):
        drawn, _ = synthesise(name, images)
        for j in range(columns):
            axes[i, 2 * j].imshow(drawn[j], cmap="gray", vmin=0, vmax=1)
            axes[i, 2 * j + 1].imshow(drawn[j] - images[j], cmap="RdBu", vmin=-0.4, vmax=0.4)
        share = f"{SCALES[name]:.3g}"
        axes[i, 0].set_title(f"{name} (extent {share})", fontsize=8, loc="left", pad=2)
    figure.subplots_adjust(0, 0, 1, 0.985, wspace=0.03, hspace=0.2)
    figure.savefig(out, dpi=64, pil_kwargs={"optimize": True})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arrays", type=Path)
    parser.add_argument("--out", type=Path, default=DOCS / "synthetic_families.png")
    given = parser.parse_args()
    if given.arrays:
        images = np.load(given.arrays)["train"][:200].astype(np.float32) / 255
    else:
        from normalis.datasets.phantom import PhantomSettings, generate

        images = generate(200, PhantomSettings(noise=0.01)).images.clip(0, 1).astype(np.float32)
    sheet(images.reshape(len(images), *images.shape[-2:]), given.out)


if __name__ == "__main__":
    main()
