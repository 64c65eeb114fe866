"""Draw what each system that the paper cites rebuilds of three images: docs/images/restored.png.

    python docs/make_restored.py --runs FOLDER       # fits that are there are not repeated

Every system of `normalis.research.cited.SYSTEMS` that is cited, and the paper's autoencoder, is
fitted on the same generated head slices by the same short recipe. `make_methods.py` puts what
`SHOWS` says of the picture on docs/reference/methods.md.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from normalis import AnomalyDetector
from normalis.errors import SettingsError
from normalis.models import MODELS
from normalis.output.overlays import grey, over, resize_map
from normalis.research.cited import SYSTEMS, System

mpl.use("Agg")
from matplotlib import pyplot as plt

PICTURE = Path(__file__).resolve().parent / "images" / "restored.png"
TRAIN, HELD, EPOCHS, BATCH = 320, 80, 50, 16
KINDS = ("", "bright", "dark")  # of the three images that are shown


#: What a look at the picture shows, by system.
SHOWS: dict[str, str] = {
    "AE, d = 16": "A clean head without either lesion; both are painted, and a piece of a "
    "ventricle, which is rebuilt elsewhere where the bright one is.",
    "GANomaly": "Grain over the whole head; both lesions gone and painted.",
    "AE, dense": "A smooth head without folds: what is painted of the lesions is their middle.",
    "AE, dense, post-processed": "The same reconstruction; the bright lesion alone is painted, the "
    "dark one cannot be: only what is brighter than rebuilt counts.",
    "AE, spatial, post-processed": "The bottleneck keeps the layout, and the lesions with it: the "
    "bright one is rebuilt as a smear, the dark one as a dent.",
    "AnoVAEGAN": "Sharper folds than other reconstructions, with grain that the critic asks for; "
    "both lesions gone.",
    "MorphAEus": "After a thousand steps still a blurred ellipse on a grey ground: the 1 x 1 "
    "bottleneck learns slowly. The lesions are painted faintly.",
    "DDAD": "The mean of three networks is clean, and they disagree nowhere: neither lesion is "
    "painted.",
    "DDAD with refinement": "Nothing is painted either: there was nothing to refine.",
    "constrained AE": "Some grain, both lesions gone and painted.",
    "constrained adversarial AE": "A clean head, both lesions gone and painted, little else.",
    "VAE with restoration": "The image itself, folds and all, without the lesions: the change is "
    "where they were. The sharpest result of the picture.",
    "GMVAE with restoration": "Sharp as well; the bright lesion left a stain and the dark one is "
    "half there: a latent map lets them through.",
    "MemAE": "As the autoencoder; more of the ventricles is painted.",
    "VAE": "As the autoencoder.",
    "HVQ-Trans": "Both lesions are painted, in blobs several times as wide: places are coarse.",
    "AE-U": "As the autoencoder, and the bright lesion is painted whole.",
    "VQ-VAE with transformer": "Eight by eight codes make a blurred head; both lesions were healed "
    "and are painted in coarse blobs.",
    "f-AnoGAN": "A noisy head of the right size and slant; lesions gone, painted faintly.",
    "AnoGAN": "The same noisy image three times: the generator collapsed.",
    "CeAE": "As the autoencoder; some of the bright lesion is rebuilt.",
    "ceVAE": "As the VAE, a little more grain.",
    "ceVAE, slope of the KL": "The same reconstruction; the slope paints the same places.",
}
_TITLE = "## What the cited systems rebuild"


def section() -> str:
    """Return what docs/reference/methods.md says of the picture; empty until there is one."""
    if not SHOWS:
        return ""
    rows = [f"| {name} | {said} |" for name, said in SHOWS.items()]
    caption = (
        f"Three generated slices: normal, with a bright lesion, with a dark one; for each what the "
        f"system rebuilds or restores, and the image painted with its map. Trained on {TRAIN} "
        f"generated normal slices, {EPOCHS} epochs of the `fast` recipe in batches of {BATCH}, a "
        "thousand steps; painted is what exceeds the highest value of 19 in 20 normal images. "
        "HVQ-Trans rebuilds features, which are no picture, and so does UniAD, which is left out."
    )
    about = (
        "The systems of [the paper's list](cited.md), as they are read there. A phantom is simple: "
        "this shows what each of them does to an image, not what it reaches."
    )
    picture = f"![What each cited system rebuilds](../images/{PICTURE.name})\n\n*{caption}*"
    table = "\n".join(["| system | what the picture shows |", "|---|---|", *rows])
    return f"{_TITLE}\n\n{about}\n\n{picture}\n\n{table}\n"


def systems() -> list[System]:
    """Return the paper's autoencoder and the systems that it cites, in the table's order."""
    return [
        s for s in SYSTEMS if s.method in MODELS and (s.group == "cited" or s.name == "AE, d = 16")
    ]


def images() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return normal slices to be fitted on, and three slices to be shown, uint8."""
    from normalis.datasets.phantom import PhantomSettings, add_lesions, generate

    drawn = generate(TRAIN + HELD + len(KINDS), PhantomSettings(noise=0.02))
    shown = drawn.images[-len(KINDS) :].copy()
    for i, kind in enumerate(KINDS):
        if kind:
            part = add_lesions(shown[i : i + 1], kind=kind, scale_px=6, contrast=0.4, seed=i)
            shown[i : i + 1] = part[0]
    normal, shown = (
        (255 * x.clip(0, 1)).round().astype(np.uint8) for x in (drawn.images[: -len(KINDS)], shown)
    )
    return normal, shown


def fitted(system: System, normal: NDArray[np.uint8], run: Path) -> AnomalyDetector:
    """Fit a system for a moment, or return what is there of it."""
    detector = AnomalyDetector(
        method=system.method, latent_dim=system.latent_dim("") or "auto", recipe="fast",
        epochs=EPOCHS, batch_size=BATCH, learning_rate=system.learning_rate,
        method_options=dict(system.options) or None, scorer=system.scorer,
        scorer_options=dict(system.scorer_options) or None,
        calibration_share=HELD / (TRAIN + HELD), device="cpu",
    )  # fmt: skip
    # Generated slices are each a case of their own, though they look alike.
    return detector.fit(normal, patient_ids=[str(i) for i in range(len(normal))], run=run)


def rebuilt(detector: AnomalyDetector, shown: NDArray[np.uint8]) -> NDArray[np.float32] | None:
    """Return what a system compares images with (N, S, S) in [0, 1], None if that is no image."""
    try:
        return np.asarray(detector.reconstruct(shown))[:, 0].clip(0, 1)
    except SettingsError:
        return None


def draw(found: dict[str, tuple[Any, Any, Any]], shown: NDArray[np.uint8]) -> None:
    """Draw systems (rows, in two halves) by images: rebuilt, and painted with the map."""
    rows = -(-(len(found) + 1) // 2)
    wide = 2 * len(KINDS) + 1
    figure, axes = plt.subplots(
        rows, 2 * wide, figsize=(2 * wide, rows), dpi=80, facecolor="white",
        width_ratios=[1.6, *[1] * (wide - 1)] * 2,
    )  # fmt: skip
    for axis in axes.ravel():
        axis.set_axis_off()
    unit = shown[:, None].astype(np.float32) / 255
    half = [("the images", None), *found.items()]
    for place, (name, one) in enumerate(half):
        row = axes[place % rows, (place // rows) * wide :][:wide]
        row[0].text(1, 0.5, "\n".join(textwrap.wrap(name, 15)), fontsize=8, ha="right", va="center")
        for i in range(len(KINDS)):
            left, right = row[1 + 2 * i], row[2 + 2 * i]
            if one is None:
                left.imshow(grey(unit[i]))
                continue
            again, maps, scale = one
            if again is not None:
                left.imshow(grey(again[i][None]))
            right.imshow(over(unit[i], resize_map(maps[i], unit.shape[-2:]), scale))
    figure.subplots_adjust(0, 0, 1, 1, wspace=0.03, hspace=0.03)
    save(figure, PICTURE)


def save(figure: Any, picture: Path) -> None:
    """Write a figure as a PNG of 256 colours, which is smaller."""
    figure.canvas.draw()
    drawn = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    palette = drawn.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=2)
    palette.save(picture, optimize=True)
    plt.close(figure)


def main() -> None:
    """Fit what is not there yet; draw the picture once all is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=Path, required=True, help="folder of the fits")
    parser.add_argument("--only", action="append", default=[], help="fit this system, draw nothing")
    parser.add_argument("--there", action="store_true", help="draw the fits that are there")
    given = parser.parse_args()
    normal, shown = images()
    found = {}
    for system in systems():
        if given.only and system.name not in given.only:
            continue
        run = given.runs / re.sub(r"\W+", "_", system.name)
        if given.there and not (run / "model.json").is_file():
            continue
        detector = fitted(system, normal, run)
        maps = detector.calibrated_map(shown)  # what the scale is of
        found[system.name] = (rebuilt(detector, shown), maps, detector.colour_scale_)
        print(system.name, flush=True)
    if not given.only:
        draw(found, shown)


if __name__ == "__main__":
    main()
