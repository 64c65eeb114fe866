"""Chest X-rays in DICOM, converted as the authors of the splits did, so that pixels agree.

From their preprocessing: stored values (no modality or VOI transform); MONOCHROME1 turned around;
anything deeper than 8 bit stretched linearly from its own smallest and largest value to 0..255 and
cut to integers; then 512 x 512, bilinear. The stretch makes brightness relative within each image,
unlike the rest of this package: it is what the published numbers were measured on.

Reference: Cai et al., *Dual-distribution discrepancy for anomaly detection in chest X-rays*,
MICCAI 2022.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from normalis.errors import DataError
from normalis.errors.extras import install_line

__all__ = ["SIZE", "dicom_to_png"]

SIZE = 512


def dicom_to_png(source: Path, target: Path) -> None:
    """Write one DICOM file as an 8-bit PNG of 512 x 512.

    Raises:
        DataError: if it cannot be decoded; the message says which extra may help.
    """
    import pydicom
    from PIL import Image

    try:
        data = pydicom.dcmread(source)
        pixels = data.pixel_array
    except Exception as error:  # decoders raise almost anything on damaged bytes
        raise DataError(
            f"{source}: the DICOM cannot be decoded ({error}); a missing decoder comes with "
            f"{install_line('codecs')}, a damaged file must be downloaded again"
        ) from error
    if pixels.ndim != 2:
        raise DataError(f"{source}: must be one grey image, got shape {pixels.shape}")
    if data.PhotometricInterpretation == "MONOCHROME1":
        pixels = pixels.max() - pixels
    if pixels.dtype != np.uint8:
        low, high = float(pixels.min()), float(pixels.max())
        if high <= low:
            raise DataError(f"{source}: the image is constant ({low:g})")
        pixels = ((pixels - low) / (high - low) * 255).astype(np.uint8)
    image = Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    target.parent.mkdir(parents=True, exist_ok=True)
    image.save(target)
