"""BraTS2021, FLAIR: axial slices of glioma patients, without and with tumour, with masks.

Counts of the paper: 4211 normal slices of 1051 scans to train; 828 normal and 1948 tumour slices
of the other 200 scans to test.

* Source: https://www.synapse.org/Synapse:syn25829067 (1251 cases, 240 x 240 x 155, NIfTI).
* Licence: the challenge's terms of use, CC BY 4.0 on later releases; register first.
* Citation: Baid et al., *The RSNA-ASNR-MICCAI BraTS 2021 benchmark*, arXiv:2107.02314.

``prepare`` takes the authors' archive (``BraTS2021.tar.gz``), whose counts must be exact, or the
1251 cases (``BraTS2021_00000/BraTS2021_00000_{flair,seg}.nii.gz``). From the cases:

* scans are cropped to 70 x 208 x 208 about their centre (the paper states the size, not where);
* every fifth slice is taken: they are "at least 5 slices apart", and 14 a scan is what the paper's
  counts amount to (2776 test slices of 200 scans; 4.0 normal ones a training scan);
* a slice is normal if no voxel of it, inside the crop, is labelled;
* intensities from 0 to the scan's maximum become 0..255, as 8-bit PNG files need;
* patients are divided with a seed. The authors' own draw is not published, so the numbers of
  slices come close to the paper's and are not equal: this is said in a note, and scans are counted
  strictly instead.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normalis.datasets.listing import list_images, quote_some
from normalis.errors import DataError, SettingsError
from normalis.research.datasets.catalogue import (
    MEDIANOMALY,
    Counts,
    NamedDataset,
    Preparation,
    medianomaly_url,
)
from normalis.research.datasets.splits import copy_brats

__all__ = ["BRATS2021", "CROP", "crop_centre"]

CROP = (208, 208, 70)  # x, y, z
_SHAPE = (240, 240, 155)


def _build(job: Preparation) -> None:
    if copy_brats(job):
        return
    cases = _cases(job)
    rng = np.random.default_rng(int(job.options["seed"]))
    chosen = rng.permutation(len(cases))[: int(job.options["test_cases"])]
    test = {sorted(cases)[i] for i in chosen}
    for part in ("train", "test/normal", "test/tumor", "test/annotation"):
        (job.work / part).mkdir(parents=True)
    with ThreadPoolExecutor() as pool:
        made = list(pool.map(lambda c: _write_case(job, *cases[c], is_test=c in test), cases))
    train, normal, tumor = (sum(column) for column in zip(*made, strict=True))
    job.notes.append(
        f"From {len(cases) - len(test)} training and {len(test)} test scans drawn with seed"
        f" {job.options['seed']}: {train} normal training slices, {normal} normal and {tumor}"
        f" tumour test slices; the authors' own draw has {job.counts.train}, "
        f"{job.counts.test_normal} and {job.counts.test_anomalous}."
    )


def _cases(job: Preparation) -> dict[str, tuple[Path, Path]]:
    """Pair the scans with their segmentations, and count them."""
    wanted, test = int(job.options["cases"]), int(job.options["test_cases"])
    if not 0 < test < wanted:
        raise SettingsError(f"test_cases must be between 0 and {wanted}, got {test}")
    files = {f.name.split(".nii")[0]: f for f in list_images(job.raw).images if ".nii" in f.name}
    scans = {stem.removesuffix("_flair"): f for stem, f in files.items() if stem.endswith("_flair")}
    bare = [name for name in scans if f"{name}_seg" not in files]
    if bare:
        raise DataError(
            f"{job.raw}: every scan needs its NAME_seg.nii.gz, {len(bare)} have none:"
            f" {quote_some(bare)}"
        )
    if len(scans) != wanted:
        raise DataError(
            f"{job.raw}: must hold the authors' layout (train, test/normal, test/tumor,"
            f" test/annotation) or {wanted} scans NAME_flair.nii.gz, found {len(scans)} scans"
        )
    return {name: (scans[name], files[f"{name}_seg"]) for name in sorted(scans)}


def _write_case(
    job: Preparation, scan: Path, segmentation: Path, *, is_test: bool
) -> tuple[int, int, int]:
    """Write the slices of one scan; return how many went to train, test/normal, test/tumor."""
    flair, labels = _volume(scan), _volume(segmentation)
    if flair.shape != labels.shape:
        raise DataError(f"{segmentation}: must have the scan's shape {flair.shape}")
    (image, first), (mask, _) = crop_centre(flair), crop_centre(labels > 0)
    top = float(flair.max())
    if not np.isfinite(top) or top <= 0:
        raise DataError(f"{scan}: must hold finite intensities above 0, its maximum is {top}")
    grey = np.clip(np.round(image * (255 / top)), 0, 255).astype(np.uint8)
    written = [0, 0, 0]
    for k in range(0, image.shape[2], int(job.options["apart"])):
        name = scan.name.split(".nii")[0] + f"_{first + k:03d}.png"
        if mask[:, :, k].any():
            if is_test:
                _write(grey[:, :, k], job.work / "test" / "tumor" / name)
                marked = 255 * mask[:, :, k].astype(np.uint8)
                _write(marked, job.work / "test/annotation" / name.replace("_flair_", "_seg_"))
                written[2] += 1
        elif grey[:, :, k].any():
            _write(grey[:, :, k], job.work / ("test/normal" if is_test else "train") / name)
            written[1 if is_test else 0] += 1
    return written[0], written[1], written[2]


def crop_centre(volume: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """Cut 208 x 208 x 70 out of the middle; return it and its first slice's number.

    Args:
        volume: (X, Y, Z), at least as large.
    """
    starts = [(have - want) // 2 for have, want in zip(volume.shape, CROP, strict=True)]
    x, y, z = (slice(s, s + want) for s, want in zip(starts, CROP, strict=True))
    return volume[x, y, z], starts[2]


def _volume(file: Path) -> NDArray[Any]:
    import nibabel

    try:
        data = np.asarray(nibabel.load(file).dataobj)  # type: ignore[attr-defined]
    except Exception as error:  # damaged files raise almost anything
        raise DataError(f"{file}: the NIfTI cannot be read ({error}); download it again") from error
    if data.shape != _SHAPE:
        raise DataError(f"{file}: must have shape {_SHAPE} as all scans of BraTS, got {data.shape}")
    return data


def _write(pixels: NDArray[np.uint8], target: Path) -> None:
    from PIL import Image

    Image.fromarray(np.ascontiguousarray(pixels.T)).save(target)  # rows are y


BRATS2021 = NamedDataset(
    name="brats2021",
    title="BraTS2021",
    modality="brain MRI",
    counts=Counts(train=4211, test_normal=828, test_anomalous=1948),
    build=_build,
    archive="BraTS2021.tar.gz",
    url=medianomaly_url("BraTS2021.tar.gz"),
    checksum="md5:237f2aee77e099f7483808ddec49a57c",
    source="https://www.synapse.org/Synapse:syn25829067",
    licence="terms of the challenge; CC BY 4.0 on later releases",
    citation="Baid et al., arXiv:2107.02314; " + MEDIANOMALY,
    aliases=("brats",),
    options={"seed": 0, "cases": 1251, "test_cases": 200, "apart": 5},
)
