"""The child process that decodes compressed DICOM frames; see `normalis.images.codecs`.

It reads requests from standard input and writes answers to standard output, each a line of JSON
and then raw bytes. Whatever goes wrong is an answer; if a native decoder takes the process down,
the parent sees the pipe close.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

# gdcm comes last: it ends the process where a header and its codestream disagree
_ORDER = ("pillow", "pyjpegls", "pylibjpeg", "pydicom", "gdcm")
_J2K_ORDER = ("pylibjpeg", "pillow", "gdcm")
# the parent cuts bits and puts signs right, from what the header says
_AS_IT_IS: Any = {
    "apply_j2k_sign_correction": False,
    "apply_jls_sign_correction": False,
    "correct_unused_bits": False,
}
LEAST_CPU_S = 1  # seconds of processor time for one frame, and more for a large one
VALUES_PER_S = 1_000_000  # any decoder is several times faster
_EXTRA_MEMORY = 2**30  # bytes that decoding may take beyond what the libraries do


def decode(request: dict[str, Any], frame: bytes) -> tuple[dict[str, Any], bytes]:
    """Decode one frame.

    Args:
        request: ``syntax``, a transfer syntax UID, and ``tags``, the image's attributes by keyword.
        frame: the compressed bytes.

    Returns:
        What it became (``dtype``, ``shape``, ``precision``, ``plugin``), and its bytes; or
        ``error`` and no bytes.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = request["syntax"]
    for name, value in request["tags"].items():
        setattr(data, name, value)
    data.NumberOfFrames = 1
    data.PixelData = encapsulate([frame])
    decoder = get_decoder(request["syntax"])
    order = _J2K_ORDER if b"\xff\x4f\xff\x51" in frame[:200] else _ORDER
    failed = []
    for plugin in [name for name in order if name in decoder._available]:
        try:
            pixels, _ = decoder.as_array(data, decoding_plugin=plugin, **_AS_IT_IS)
        except BaseException as error:  # the panic of a decoder in Rust is no Exception
            failed.append(f"{plugin}: {' '.join(str(error).split())[-200:]}")
            continue
        said = {
            "dtype": pixels.dtype.str,
            "shape": pixels.shape,
            "precision": precision(frame),
            "plugin": plugin,
        }
        return said, pixels.tobytes()
    return {"error": "; ".join(failed) or "no decoder for it is installed"}, b""


def precision(frame: bytes) -> int | None:
    """Return the bits of a sample that a JPEG, JPEG-LS or JPEG 2000 codestream states."""
    siz = frame.find(b"\xff\x51", 0, 4096)
    if b"\xff\x4f\xff\x51" in frame[:4096] and len(frame) > siz + 40:
        return (frame[siz + 40] & 0x7F) + 1
    at = 2
    while frame[:2] == b"\xff\xd8" and at + 5 <= len(frame) and frame[at] == 0xFF:
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return frame[at + 4]
        at += 2 + length
    return None


def _limit_memory() -> None:
    """Let a codestream that claims gigabytes fail here, and not take the machine's memory."""
    with suppress(ImportError, OSError, ValueError, IndexError):
        import resource

        pages = int(Path("/proc/self/statm").read_bytes().split()[0])
        taken = pages * os.sysconf("SC_PAGE_SIZE")
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (taken + _EXTRA_MEMORY, hard))
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_time(values: int) -> None:
    """Let a decoder that does not end be stopped by its processor time, whatever the load."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        spent = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        allowed = int(spent) + 1 + LEAST_CPU_S + values // VALUES_PER_S
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (allowed, hard))


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until the parent closes the pipe."""
    while line := requests.readline():
        request = json.loads(line)
        frame = requests.read(request["bytes"])
        tags = request["tags"]
        _limit_time(tags["Rows"] * tags["Columns"] * tags["SamplesPerPixel"])
        try:
            said, pixels = decode(request, frame)
        except BaseException as error:
            said, pixels = {"error": f"{type(error).__name__}: {error}"}, b""
        answers.write(json.dumps(said | {"bytes": len(pixels)}).encode() + b"\n")
        answers.write(pixels)
        answers.flush()


def main() -> None:
    """Run as a child: import the decoders, then serve."""
    import logging
    import warnings

    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what decoders print may not come between the answers
    import numpy  # noqa: F401
    import pydicom.pixels  # noqa: F401

    _limit_memory()
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
