"""MOOD, the Medical Out-of-Distribution challenge: ``brain_train``, ``toy``, ``toy_label``.

``NAME_train`` is normal. The test images are in a folder beside ``NAME_label``, whose ``pixel``
holds masks and whose ``sample`` holds one number for each volume: 1 is anomalous.

Reference: Zimmerer et al., *MOOD 2020*, IEEE Transactions on Medical Imaging 41 (2022).
"""

from __future__ import annotations

from pathlib import Path

from normalis.datasets.base import Dataset, Options, Sample
from normalis.datasets.listing import folders_in, is_file, list_images, quote_some
from normalis.datasets.words import meaning
from normalis.errors import DataError

__all__ = ["LAYOUT", "read", "recognise"]

LAYOUT = "MOOD"

_TRAIN = "_train"


def recognise(path: Path, options: Options | None = None) -> bool:
    """Whether a folder of labels lies beside that of its images, as ``toy_label`` and ``toy``."""
    return path.is_dir() and bool(_tests(path))


def _tests(path: Path) -> dict[str, str]:
    names = list(folders_in(path))
    pairs = {name: f"{name}_label" for name in names if f"{name}_label" in names}
    inside = {k: v for k, v in pairs.items() if {"pixel", "sample"} & set(folders_in(path / v))}
    flat = any(name.endswith(_TRAIN) for name in names)
    return pairs if flat else inside


def read(path: Path, options: Options | None = None) -> Dataset:
    """List the training and the test images with their labels and masks.

    Raises:
        DataError: if training images of several organs lie side by side, or there is no image.
    """
    trains = [name for name in folders_in(path) if name.endswith(_TRAIN)]
    if len(trains) > 1:
        raise DataError(f"{path}: holds {quote_some(trains)}; give the folder of one organ")
    samples = [
        Sample(path=image, split="train", is_anomalous=False)
        for name in trains
        for image in list_images(path / name).images
    ]
    notes: list[str] = []
    for images, labels in _tests(path).items():
        found, unknown = _of_test(path / images, path / labels)
        samples += found
        if unknown:
            notes.append(f"{unknown} images of {images} have no label in {labels}.")
    if not samples:
        raise DataError(f"{path}: {quote_some(folders_in(path))} hold no image")
    return Dataset(
        name=path.resolve().name, root=path, layout=LAYOUT, samples=tuple(samples),
        notes=tuple(notes),
    )  # fmt: skip


def _of_test(images: Path, labels: Path) -> tuple[list[Sample], int]:
    pixel = labels / "pixel" if (labels / "pixel").is_dir() else labels
    samples, unknown = [], 0
    for image in list_images(images).images:
        mask = pixel / image.name
        word = _word(labels / "sample" / f"{image.name}.txt")
        is_anomalous = {"normal": False, "anomalous": True}.get(word or "")
        unknown += is_anomalous is None
        samples.append(
            Sample(
                path=image,
                split="unlabelled" if is_anomalous is None else "test",
                is_anomalous=is_anomalous,
                mask=mask if is_anomalous is not None and is_file(mask) else None,
            )
        )
    return samples, unknown


def _word(file: Path) -> str | None:
    try:
        return meaning(file.read_text(encoding="utf-8").strip())
    except (OSError, ValueError):
        return None
