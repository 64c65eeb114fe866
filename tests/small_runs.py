"""Small images, and detectors that are fitted in a moment."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from normalis import AnomalyDetector
from normalis.datasets.phantom import PhantomSettings, generate


def phantoms(n: int = 30, *, size: int = 32, seed: int = 0) -> np.ndarray:
    """Return (n, size, size) uint8 head slices, no two alike."""
    images = generate(n, PhantomSettings(image_size=size, noise=0.03, seed=seed)).images
    return (255 * np.clip(images, 0, 1)).astype(np.uint8)


def anomalies(n: int = 10, *, size: int = 32, seed: int = 1) -> np.ndarray:
    """Return slices with a bright square."""
    images = phantoms(n, size=size, seed=seed)
    images[:, size // 4 : size // 2, size // 4 : size // 2] = 255
    return images


def write_pngs(folder: Path, images: np.ndarray) -> list[Path]:
    """Write images as 000.png, 001.png, ... and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:03d}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return paths


def detector(**changes) -> AnomalyDetector:
    """Return an unfitted detector that needs no time to fit."""
    small = {
        "method": "ae-u",
        "image_size": 16,
        "latent_dim": 2,
        "epochs": 1,
        "batch_size": 16,
        "calibration": "split",
        "fpr": 0.2,
        "device": "cpu",
        "method_options": {"hidden_dim": 8},
    }
    return AnomalyDetector(**(small | changes))


def write_mvtec(root: Path, *, train: int = 20, valid: int = 0, test: int = 8) -> Path:
    """Write an MVTec layout with masks of the bright squares."""
    write_pngs(root / "train/good", phantoms(train, seed=3))
    if valid:
        write_pngs(root / "valid/good", phantoms(valid, seed=4))
    write_pngs(root / "test/good", phantoms(test, seed=5))
    write_pngs(root / "test/square", anomalies(test, seed=6))
    masks = np.zeros((test, 32, 32), np.uint8)
    masks[:, 8:16, 8:16] = 255
    write_pngs(root / "ground_truth/square", masks)
    return root


def read_table(file: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
