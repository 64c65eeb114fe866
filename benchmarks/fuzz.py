"""Damage files in many ways and read them: no abort, no stray exception, no hang, no flood.

    python benchmarks/fuzz.py --out fuzz --count 20000          # in pieces; run again to go on
    python benchmarks/fuzz.py --out fuzz --table docs/reference/robustness.md

Seeds are small files of every format, made here. A mutant is a seed with flipped bits, changed
bytes, a cut, a repeated or lost block, a number in it set to an extreme, or a piece of another
seed; of compressed containers also their content. Each is read as ``check`` and ``score`` read it,
in a child process that is used again and started anew where it died. Measured per mutant: what came
out, seconds of processor time, and peak memory of the child and of the decoders that it started.
Mutant k of a format is the same on every run.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

HANG_S = 10.0
FLOOD = 2**30
KILL_S = 60.0
_COLUMNS = ("format", "number", "seed", "outcome", "seconds", "peak_mb", "noise", "detail")
_EXTREMES = (0, 1, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)


# --- seeds ----------------------------------------------------------------------------------------


def picture(seed: int, *, top: int = 255, shape: tuple[int, int] = (40, 48)) -> np.ndarray:
    """Return a noisy disc, 0 to top."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    disc = ((y - shape[0] / 2) ** 2 + (x - shape[1] / 2) ** 2) < (min(shape) / 2.5) ** 2
    return (np.clip(0.6 * disc + rng.normal(0.1, 0.03, shape), 0, 1) * top).astype(np.uint16)


def _raster(kind: str) -> dict[str, bytes]:
    from PIL import Image

    grey = Image.fromarray(picture(1).astype(np.uint8))
    deep = Image.fromarray(picture(2, top=4095))
    rgb = Image.merge("RGB", [grey, grey.rotate(90).resize(grey.size), grey])
    real = Image.fromarray(picture(3, top=1000).astype(np.float32))

    def saved(image: Any, **options: Any) -> bytes:
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        return stream.getvalue()

    if kind == "PNG":
        modes = {m: saved(grey.convert(m)) for m in ("L", "1", "P", "LA", "RGBA")}
        return modes | {"16 bit": saved(deep), "RGB": saved(rgb)}
    if kind == "JPEG":
        return {
            "grey": saved(grey),
            "RGB": saved(rgb),
            "progressive": saved(rgb, progressive=True),
            "CMYK": saved(rgb.convert("CMYK")),
        }
    found = {f"{c}": saved(grey, compression=c) for c in ("raw", "tiff_lzw", "tiff_deflate")}
    found |= {
        "16 bit": saved(deep),
        "float": saved(real),
        "RGB jpeg": saved(rgb, compression="jpeg"),
    }
    pages = saved(deep, save_all=True, append_images=[deep, deep], compression="tiff_lzw")
    return found | {"pages": pages, "packbits": saved(rgb, compression="packbits")}


def _dicom() -> dict[str, bytes]:
    from PIL import Image
    from pydicom import uid
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate

    def data(values: np.ndarray, syntax: str, bits: int, **tags: Any) -> Dataset:
        one = Dataset()
        one.file_meta = FileMetaDataset()
        one.file_meta.TransferSyntaxUID = syntax
        one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID = uid.CTImageStorage
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID = "1.2.3"
        one.Modality, one.PatientID, one.PatientAge = "CT", "P1", "045Y"
        colour = values.ndim == 3 and values.shape[-1] == 3
        one.Rows, one.Columns = values.shape[-3:-1] if colour else values.shape[-2:]
        one.SamplesPerPixel = 3 if colour else 1
        one.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
        if colour:
            one.PlanarConfiguration = 0
        elif values.ndim == 3:
            one.NumberOfFrames = len(values)
        one.BitsAllocated, one.BitsStored = 8 * values.dtype.itemsize, bits
        one.HighBit, one.PixelRepresentation = bits - 1, 0
        one.PixelSpacing, one.ImagePositionPatient = [0.5, 0.5], [0, 0, 1]
        one.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        one.PixelData = values.tobytes()
        one["PixelData"].VR = "OW" if values.dtype.itemsize == 2 else "OB"
        for name, value in tags.items():
            setattr(one, name, value)
        return one

    def written(one: Dataset) -> bytes:
        stream = io.BytesIO()
        one.save_as(stream, enforce_file_format=True)
        return stream.getvalue()

    deep, small = picture(4, top=4095), picture(5).astype(np.uint8)
    rescale = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    window = {"WindowCenter": 40, "WindowWidth": 400, **rescale}
    plain = uid.ExplicitVRLittleEndian
    found = {
        "explicit": written(data(deep, plain, 12, **window)),
        "implicit": written(data(deep, uid.ImplicitVRLittleEndian, 12, **rescale)),
        "frames": written(data(np.stack([deep] * 3), plain, 12)),
        "RGB": written(data(np.stack([small] * 3, -1), plain, 8)),
        "padding": written(data(deep, plain, 12, PixelPaddingValue=0, **rescale)),
        "deflated": written(data(deep, uid.DeflatedExplicitVRLittleEndian, 12, **rescale)),
    }
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [256, 0, 8], bytes(range(256))
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "OW"
    found["VOI LUT"] = written(data(small, plain, 8, VOILUTSequence=[table]))
    palette = data(small, plain, 8, PhotometricInterpretation="PALETTE COLOR")
    for name in ("Red", "Green", "Blue"):
        setattr(palette, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        palette[f"{name}PaletteColorLookupTableDescriptor"].VR = "US"
        ramp = (np.arange(256, dtype="<u2") * 257).tobytes()
        setattr(palette, f"{name}PaletteColorLookupTableData", ramp)
    found["palette"] = written(palette)
    for name in ("RLELossless", "JPEG2000Lossless", "JPEGLSLossless"):
        for values, bits, kind in ((deep, 12, "grey"), (np.stack([small] * 3, -1), 8, "RGB")):
            one = data(values, plain, bits)
            one.compress(getattr(uid, name))
            found[f"{name} {kind}"] = written(one)
    stream = io.BytesIO()
    Image.fromarray(small).save(stream, "JPEG")
    for name in ("JPEGBaseline8Bit", "JPEGLosslessSV1"):  # the second contradicts its codestream
        one = data(small, getattr(uid, name), 8)
        one.PixelData = encapsulate([stream.getvalue()])
        one["PixelData"].is_undefined_length = True
        found[name] = written(one)
    return found


def _nifti() -> dict[str, bytes]:
    import nibabel as nib

    volume = np.stack([picture(i, top=1000, shape=(20, 24)) for i in range(6)], -1)
    kinds = {np.int16: "int16", np.uint8: "uint8", np.float32: "float32"}
    found = {n: nib.Nifti1Image(volume.astype(t), np.eye(4)).to_bytes() for t, n in kinds.items()}
    turned = np.diag([-1.0, 1, -1, 1])
    found["turned"] = nib.Nifti1Image(volume.astype(np.int16), turned).to_bytes()
    found["NIfTI-2"] = nib.Nifti2Image(volume.astype(np.int16), np.eye(4)).to_bytes()
    return found


def _npy() -> dict[str, bytes]:
    def saved(values: np.ndarray) -> bytes:
        stream = io.BytesIO()
        np.save(stream, values)
        return stream.getvalue()

    images = np.stack([picture(i, shape=(16, 16)) for i in range(5)])
    kinds = (np.uint8, np.int16, np.float32, np.float64)
    found = {np.dtype(t).name: saved(images.astype(t)) for t in kinds}
    return found | {"fortran": saved(np.asfortranarray(images))}


def _npz() -> dict[str, bytes]:
    def saved(write: Callable[..., None], dtype: type) -> bytes:
        images = np.stack([picture(i, shape=(16, 16)) for i in range(6)]).astype(dtype)
        stream = io.BytesIO()
        write(stream, train=images[:3], test=images[3:], test_label=np.array([0, 1, 0]))
        return stream.getvalue()

    return {
        "stored": saved(np.savez, np.uint8),
        "compressed": saved(np.savez_compressed, np.uint8),
        "float": saved(np.savez_compressed, np.float64),
    }


SEEDS: dict[str, Callable[[], dict[str, bytes]]] = {
    "PNG": lambda: _raster("PNG"),
    "JPEG": lambda: _raster("JPEG"),
    "TIFF": lambda: _raster("TIFF"),
    "DICOM": _dicom,
    "NIfTI": _nifti,
    "NIfTI.gz": lambda: {k: gzip.compress(v, mtime=0) for k, v in _nifti().items()},
    "npy": _npy,
    "npz": _npz,
}
SUFFIX = {"PNG": ".png", "JPEG": ".jpg", "TIFF": ".tif", "DICOM": ".dcm", "NIfTI": ".nii"} | {
    "NIfTI.gz": ".nii.gz",
    "npy": ".npy",
    "npz": ".npz",
}
SHARE = {"DICOM": 3.0}  # the format with the most decoders gets the most mutants


# --- mutants --------------------------------------------------------------------------------------


def mutant(kind: str, number: int, seeds: dict[str, bytes]) -> tuple[str, bytes]:
    """Return the seed's name and the bytes of one mutant."""
    rng = np.random.default_rng([number, zlib.crc32(kind.encode())])
    names = list(seeds)
    name = names[number % len(names)]
    whole = seeds[name]
    inside = rng.random() < 0.7
    if kind == "NIfTI.gz" and inside:
        return name, gzip.compress(_damage(gzip.decompress(whole), rng, seeds), mtime=0)
    if kind == "npz" and inside:
        return name, _inside_zip(whole, rng, seeds)
    if kind == "PNG" and inside:
        return name, _with_checksums(_damage(whole, rng, seeds))
    return name, _damage(whole, rng, seeds)


def _damage(whole: bytes, rng: np.random.Generator, seeds: dict[str, bytes]) -> bytes:
    found = bytearray(whole)
    for _ in range(int(rng.integers(1, 4))):
        if len(found) > 8:
            _once(found, rng, seeds)
    return bytes(found)


def _once(found: bytearray, rng: np.random.Generator, seeds: dict[str, bytes]) -> None:
    """Change one thing, near the head in half of the cases, where the claims are."""
    reach = len(found) if rng.random() < 0.5 else min(len(found), 600)
    at = int(rng.integers(0, max(1, reach - 8)))
    length = int(rng.integers(1, 64))
    match int(rng.integers(0, 7)):
        case 0:
            found[at] ^= 1 << int(rng.integers(0, 8))
        case 1:
            found[at : at + 4] = rng.bytes(4)
        case 2:
            size = int(rng.choice([1, 2, 4, 8]))
            value = int(rng.choice(_EXTREMES)) % 2 ** (8 * size)
            found[at : at + size] = value.to_bytes(size, str(rng.choice(["little", "big"])))
        case 3:
            del found[at + 8 :]
        case 4:
            del found[at : at + length]
        case 5:
            found[at:at] = found[at : at + length]
        case _:
            other = list(seeds.values())[int(rng.integers(0, len(seeds)))]
            start = int(rng.integers(0, max(1, len(other) - length)))
            found[at : at + length] = other[start : start + length]


def _inside_zip(whole: bytes, rng: np.random.Generator, seeds: dict[str, bytes]) -> bytes:
    import zipfile

    arrays = _npy()
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(stream, "w") as new:
        names = old.namelist()
        chosen = names[int(rng.integers(0, len(names)))]
        for member in names:
            content = old.read(member)
            content = _damage(content, rng, arrays) if member == chosen else content
            new.writestr(zipfile.ZipInfo(member), content, zipfile.ZIP_DEFLATED)
    return stream.getvalue()


def _with_checksums(whole: bytes) -> bytes:
    """Put a PNG's checksums right, so that damage gets past them."""
    found, at = bytearray(whole), 8
    while at + 12 <= len(found):
        length = int.from_bytes(found[at : at + 4], "big")
        end = at + 8 + length
        if end + 4 > len(found):
            break
        found[end : end + 4] = zlib.crc32(found[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(found)


# --- the child that reads ---------------------------------------------------------------------


def read(path: Path) -> tuple[str, str]:
    """Read a file as ``check`` and ``score`` do; say what came out, and more of it."""
    from normalis.datasets import open_dataset
    from normalis.errors import DataError
    from normalis.images import probe
    from normalis.images.decoding import Recipe, Source, decode

    sources = [Source(path)]
    if path.suffix in (".npy", ".npz"):
        try:
            rows = open_dataset(path).samples
        except DataError as error:
            return "refused", str(error)[:200]
        sources = [Source(s.path, s.index, s.array) for s in rows[:50]]
    else:
        with suppress(DataError):
            probe(path)
    reasons = []
    for channels in (1, 3):
        recipe = Recipe(image_size=64, channels=channels)
        for file in decode(sources, recipe, workers=1):
            if file.reason is not None:
                reasons.append(file.reason)
            if not all(np.isfinite(image.pixels).all() for image in file.images):
                return "not finite", ""
    return ("refused", reasons[0][:200]) if reasons else ("read", "")


def _peak_mb(pids: list[int], *, reset: bool) -> float:
    total = 0.0
    for pid in pids:
        try:
            if reset:
                Path(f"/proc/{pid}/clear_refs").write_text("5")
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        total += sum(int(x.split()[1]) for x in status.splitlines() if x.startswith("VmHWM:"))
    return total / 1024


def _family() -> list[int]:
    found = [os.getpid()]
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # the thread has just ended
            found += [int(pid) for pid in (task / "children").read_text().split()]
    return found


def _processor_s() -> float:
    """Return processor time, the ended decoders' included: on a busy machine a clock says little.

    What waits without computing is ended after `KILL_S` of the clock, and is a hang.
    """
    return sum(os.times()[:4])


def serve() -> None:
    """Read one file after the other, as the parent names them."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        path = Path(line.rstrip("\n"))
        _peak_mb(_family(), reset=True)
        start = _processor_s()
        try:
            outcome, detail = read(path)
        except Exception as error:
            outcome, detail = "exception", f"{type(error).__name__}: {error}"[:200]
        seconds = _processor_s() - start
        peak = _peak_mb(_family(), reset=False)
        answers.write(json.dumps([outcome, seconds, peak, detail]) + "\n")
        answers.flush()


class Reader:
    """A child process that reads mutants."""

    def __init__(self, folder: Path) -> None:
        self.noise = folder / "stderr.txt"
        self._start()

    def _start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.noise.open("ab"),
            text=True,
        )

    def __call__(self, path: Path) -> tuple[str, float, float, int, str]:
        """Return outcome, seconds, peak (MB), bytes on standard error, detail."""
        before = self.noise.stat().st_size
        timer = threading.Timer(KILL_S, self.process.kill)
        timer.start()
        start = time.perf_counter()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        timer.cancel()
        noise = self.noise.stat().st_size - before
        if line:
            outcome, seconds, peak, detail = json.loads(line)
            return outcome, seconds, peak, noise, detail
        seconds = time.perf_counter() - start
        code = self.process.wait()
        name = signal.Signals(-code).name if code < 0 else str(code)
        self._start()
        return ("hang" if seconds >= KILL_S else "abort"), seconds, 0.0, noise, name


# --- the parent -----------------------------------------------------------------------------------


def plan(count: int) -> Iterator[tuple[str, int]]:
    """Yield (format, number), the formats in turn."""
    weights = {kind: SHARE.get(kind, 1.0) for kind in SEEDS}
    each = {k: round(count * w / sum(weights.values())) for k, w in weights.items()}
    for number in range(max(each.values())):
        yield from ((kind, number) for kind in SEEDS if number < each[kind])


def run(folder: Path, count: int) -> None:
    """Read the mutants that are not in the results yet."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "found").mkdir(exist_ok=True)
    results = folder / "results.csv"
    done = {(r["format"], int(r["number"])) for r in rows_of(results)}
    seeds = {kind: make() for kind, make in SEEDS.items()}
    fresh = not results.exists()
    reader = Reader(folder)
    with results.open("a", newline="") as stream:
        table = csv.writer(stream)
        if fresh:
            table.writerow(_COLUMNS)
        for kind, number in plan(count):
            if (kind, number) in done:
                continue
            name, content = mutant(kind, number, seeds[kind])
            path = folder / f"mutant{SUFFIX[kind]}"
            path.write_bytes(content)
            outcome, seconds, peak, noise, detail = reader(path)
            bad = outcome not in ("read", "refused") or seconds > HANG_S or peak > FLOOD / 2**20
            if bad or noise:
                (folder / "found" / f"{kind}_{number}{SUFFIX[kind]}").write_bytes(content)
            row = (
                kind,
                number,
                name,
                outcome,
                f"{seconds:.4f}",
                f"{peak:.0f}",
                noise,
                ascii(detail),
            )
            table.writerow(row)
            stream.flush()
    reader.process.kill()


def rows_of(path: Path) -> list[dict[str, str]]:
    """Return the results so far."""
    if not path.exists():
        return []
    with path.open(newline="") as stream:
        return [row for row in csv.DictReader(stream) if row["detail"] is not None]


def table(folder: Path) -> str:
    """Return the results as a table of Markdown."""
    by_kind: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows_of(folder / "results.csv"):
        by_kind[row["format"]].append(row)
    lines = [
        "| format | mutants | read | refused | exceptions | aborts | not finite | over "
        f"{HANG_S:g} s | over 1 GB | slowest, s | peak, MB | wrote to the terminal |",
        "|" + " --- |" * 12,
    ]
    everything = [row for rows in by_kind.values() for row in rows]
    for kind, rows in [*by_kind.items(), ("all", everything)]:
        count = Counter(row["outcome"] for row in rows)
        seconds = [float(row["seconds"]) for row in rows]
        peaks = [float(row["peak_mb"]) for row in rows]
        cells = [
            kind,
            len(rows),
            count["read"],
            count["refused"],
            count["exception"],
            count["abort"],
            count["not finite"],
            sum(s > HANG_S for s in seconds),
            sum(p * 2**20 > FLOOD for p in peaks),
            f"{max(seconds):.2f}",
            f"{max(peaks):.0f}",
            sum(int(row["noise"]) > 0 for row in rows),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("fuzz"))
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--table", type=Path, help="write the table into this page, and no more")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
    elif arguments.table:
        page = arguments.table.read_text()
        head, _, rest = page.partition("<!-- fuzz -->")
        tail = rest.partition("<!-- end of fuzz -->")[2]
        inside = f"<!-- fuzz -->\n\n{table(arguments.out)}\n<!-- end of fuzz -->"
        arguments.table.write_text(head + inside + tail)
    else:
        run(arguments.out, arguments.count)
        print(table(arguments.out))


if __name__ == "__main__":
    main()
