"""Every named data set from every form that it is downloaded in, on small files in those forms."""

import csv
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from normalis.datasets import open_dataset
from normalis.datasets.atomic import new_folder
from normalis.errors import DataError, SettingsError
from normalis.research.datasets import DATASETS, named, prepare
from normalis.research.datasets.catalogue import Counts

SMALL = Counts(train=3, test_normal=2, test_anomalous=2)
NAMES = {
    "train": {"0": ["n0", "n1", "n2"]},
    "test": {"0": ["n3", "n4"], "1": ["a0", "a1"]},
}


def lists(suffix: str) -> dict:
    """The lists with a suffix, and the `unlabeled` ones whose files nobody has."""
    data = {s: {k: [n + suffix for n in v] for k, v in p.items()} for s, p in NAMES.items()}
    data["train"]["unlabeled"] = {"0": ["gone" + suffix], "1": ["gone2" + suffix]}
    return data


def picture(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(path)
    return path


def benchmark_archive(root: Path, suffix: str = ".png") -> Path:
    for part in NAMES.values():
        for name in (name for names in part.values() for name in names):
            picture(root / "images" / (name + suffix))
    (root / "data.json").write_text(json.dumps(lists(suffix)))
    return root


def contents(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def assert_nothing_left(folder: Path, *names: str) -> None:
    assert {p.name for p in folder.iterdir()} == set(names)


# --- the table --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATASETS)
def test_every_named_data_set_says_what_it_is(name):
    dataset = named(name)
    assert dataset.name == name
    assert dataset.source
    assert dataset.licence
    assert dataset.citation
    assert dataset.epochs == (600 if name == "brain_tumor" else 250)
    assert (dataset.url is None) == (dataset.archive is None) == (dataset.checksum is None)


def test_counts_are_those_of_the_papers():
    counts = {n: named(n).counts for n in DATASETS if n != "phantom"}
    assert {n: (c.train, c.test_normal, c.test_anomalous) for n, c in counts.items()} == {
        "rsna": (3851, 1000, 1000),
        "vindr_cxr": (4000, 1000, 1000),
        "brain_tumor": (1000, 600, 600),
        "brats2021": (4211, 828, 1948),
        "lag": (1500, 811, 811),
        "isic2018": (6705, 909, 603),
        "camelyon16": (5088, 1120, 1113),
    }


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("RSNA", "rsna"),
        ("VinCXR", "vindr_cxr"),
        ("Brain-Tumor", "brain_tumor"),
        ("C16", "camelyon16"),
    ],
)
def test_names_of_archives_and_other_spellings(alias, name):
    assert named(alias).name == name


def test_unknown_names_and_options(tmp_path):
    with pytest.raises(SettingsError, match="must be one of phantom, rsna"):
        named("mnist")
    with pytest.raises(SettingsError, match="did you mean 'split'"):
        prepare("rsna", tmp_path, tmp_path / "out", splt="x")
    with pytest.raises(DataError, match="must be downloaded first"):
        prepare("rsna", None, tmp_path / "out")
    with pytest.raises(DataError, match="no such file"):
        prepare("rsna", tmp_path / "nope", tmp_path / "out")


# --- the authors' archives ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rsna", "vindr_cxr", "brain_tumor", "lag"])
@pytest.mark.parametrize("form", ["folder", "nested", "tar.gz", "zip"])
def test_prepared_archive_with_data_json(tmp_path, name, form):
    root = benchmark_archive(tmp_path / "raw" / "SET")
    raw = {"folder": root, "nested": tmp_path / "raw"}.get(form, tmp_path / f"set.{form}")
    if form == "tar.gz":
        with tarfile.open(raw, "w:gz") as bundle:
            bundle.add(root, "SET")
    elif form == "zip":
        with zipfile.ZipFile(raw, "w") as bundle:
            for file in contents(root):
                bundle.write(root / file, f"SET/{file}")
    data = prepare(name, raw, tmp_path / "out ü", counts=SMALL)
    assert data.name == name
    assert data.layout == "images + data.json"
    assert [s.path.stem for s in data.samples] == ["n0", "n1", "n2", "n3", "n4", "a0", "a1"]
    assert data.notes == ()
    assert len(contents(root)) == 8  # the source is as it was
    about = json.loads((tmp_path / "out ü" / "about.json").read_text())
    assert about["licence"] == named(name).licence
    assert str(tmp_path) not in json.dumps(about)


def test_mismatched_counts_name_what_is_missing_and_leave_nothing(tmp_path):
    root = benchmark_archive(tmp_path / "raw")
    with pytest.raises(DataError, match=r"train normal: 3 instead of 1000; test normal: 2 inst"):
        prepare("brain_tumor", root, tmp_path / "out")
    (root / "images" / "a1.png").unlink()
    with pytest.raises(DataError, match=r"1 of the 7 files .* missing: a1\.png"):
        prepare("brain_tumor", root, tmp_path / "out", counts=SMALL)
    assert_nothing_left(tmp_path, "raw")


def test_never_overwrites(tmp_path):
    root = benchmark_archive(tmp_path / "raw")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(DataError, match="exists already"):
        prepare("rsna", root, tmp_path / "out", counts=SMALL)
    assert contents(tmp_path / "out") == {"mine.txt"}


def test_camelyon_leaves_valid_aside(tmp_path):
    raw = tmp_path / "Camelyon16"
    for i in range(3):
        picture(raw / f"train/good/{i}.png")
    for i in range(2):
        for part in ("test/good", "test/Ungood", "valid/good", "valid/Ungood"):
            picture(raw / part / f"{i}.png")
    data = prepare("camelyon16", raw, tmp_path / "out", counts=SMALL)
    assert data.layout == "MVTec/BMAD"
    assert not (tmp_path / "out" / "valid").exists()
    with pytest.raises(DataError, match="must hold train/good"):
        prepare("camelyon16", raw / "train", tmp_path / "other", counts=SMALL)


def brats_archive(root: Path) -> Path:
    for i in range(3):
        picture(root / f"train/B_{i}_flair_060.png")
    for i in range(2):
        picture(root / f"test/normal/C_{i}_flair_060.png")
        picture(root / f"test/tumor/C_{i}_flair_065.png")
        picture(root / f"test/annotation/C_{i}_seg_065.png", 255)
    return root


def test_brats_archive(tmp_path):
    raw = brats_archive(tmp_path / "raw" / "BraTS2021")
    data = prepare("brats2021", tmp_path / "raw", tmp_path / "out", counts=SMALL)
    assert all(s.mask for s in data.samples if s.is_anomalous)
    (raw / "test/annotation/C_1_seg_065.png").unlink()
    with pytest.raises(DataError, match=r"1 have none: C_1_flair_065\.png"):
        prepare("brats2021", raw, tmp_path / "other", counts=SMALL)


# --- the challenges -----------------------------------------------------------------------------


def dicom(path: Path, pixels: np.ndarray, *, monochrome: int = 2) -> None:
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.SOPClassUID = SecondaryCaptureImageStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PixelRepresentation = 1, 0
    data.PhotometricInterpretation = f"MONOCHROME{monochrome}"
    data.BitsAllocated = data.BitsStored = 8 * pixels.itemsize
    data.HighBit = data.BitsStored - 1
    data.RescaleSlope, data.RescaleIntercept = 2, -100  # must not matter
    data.PixelData = pixels.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


@pytest.mark.parametrize(("name", "suffix"), [("rsna", ".dcm"), ("vindr_cxr", ".dicom")])
def test_dicom_with_a_split_equals_the_authors_preprocessing(tmp_path, name, suffix):
    raw, rng = tmp_path / "challenge", np.random.default_rng(0)
    images = {}
    for i, stem in enumerate(["n0", "n1", "n2", "n3", "n4", "a0", "a1", "not listed"]):
        deep = i % 2
        images[stem] = rng.integers(9, 3000 if deep else 250, (20, 30)).astype(
            np.uint16 if deep else np.uint8
        )
        dicom(raw / "train" / (stem + suffix), images[stem], monochrome=1 if i == 3 else 2)
    split = tmp_path / "data.json"
    split.write_text(json.dumps(lists(".png")))
    data = prepare(name, raw, tmp_path / "out", split=split, counts=SMALL)
    assert len(data.samples) == 7
    for sample in data.samples:
        pixels = images[sample.path.stem]
        if sample.path.stem == "n3":
            pixels = pixels.max() - pixels
        if pixels.dtype != np.uint8:
            low, high = pixels.min(), pixels.max()
            pixels = ((pixels - low) * 1.0 / (high - low) * 255).astype(np.uint8)
        expected = Image.fromarray(pixels).resize((512, 512), Image.Resampling.BILINEAR)
        with Image.open(sample.path) as found:
            np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def test_dicom_that_is_missing_or_damaged(tmp_path):
    raw = tmp_path / "raw"
    for stem in ("n0", "n1", "n2", "n3", "n4", "a0"):
        dicom(raw / f"{stem}.dcm", np.arange(16, dtype=np.uint8).reshape(4, 4))
    with pytest.raises(DataError, match=r"needs the authors' split.*found none"):
        prepare("rsna", raw, tmp_path / "out", counts=SMALL)
    (raw / "rsna_data.json").write_text(json.dumps(lists(".png")))
    with pytest.raises(DataError, match=r"1 of the 7 files .* missing: a1\.png"):
        prepare("rsna", raw, tmp_path / "out", counts=SMALL)
    (raw / "a1.dcm").write_bytes(b"no dicom")
    with pytest.raises(DataError, match=r"a1\.dcm: the DICOM cannot be decoded"):
        prepare("rsna", raw, tmp_path / "out", counts=SMALL)
    assert_nothing_left(tmp_path, "raw")


def test_kaggle_brain_tumor_folders(tmp_path):
    raw = tmp_path / "archive"
    places = {"n0": "Training/notumor", "n1": "Training/notumor", "n2": "Testing/notumor"}
    places |= {"n3": "Training/notumor", "n4": "Testing/notumor", "a0": "Training/glioma"}
    places |= {"a1": "Testing/meningioma", "p0": "Training/pituitary"}
    for name, place in places.items():
        picture(raw / place / f"{name}.jpg")
    split = tmp_path / "data.json"
    split.write_text(json.dumps(lists(".jpg")))
    data = prepare("brain_tumor", raw, tmp_path / "out", split=split, counts=SMALL)
    assert [s.path.name for s in data.samples if s.is_anomalous] == ["a0.jpg", "a1.jpg"]
    picture(raw / "Testing/glioma/a0.jpg", 200)
    with pytest.raises(DataError, match=r"a0\.jpg is there 2 times with different content"):
        prepare("brain_tumor", raw, tmp_path / "other", split=split, counts=SMALL)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"train": {}}',
        '{"train": {"0": ["../x"]}, "test": {"0": [], "1": []}}',
        '{"train": {"0": [1]}, "test": {"0": [], "1": []}}',
    ],
)
def test_split_of_another_form(tmp_path, text):
    picture(tmp_path / "raw" / "n0.jpg")
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(DataError, match=r"data\.json: must"):
        prepare("lag", tmp_path / "raw", tmp_path / "out", split=tmp_path / "data.json")


def isic_folder(root: Path) -> Path:
    for stage, rows in {
        "Training": {"ISIC_1": 1, "ISIC_2": 1, "ISIC_3": 1, "ISIC_4": 0},
        "Test": {"ISIC_5": 1, "ISIC_6": 1, "ISIC_7": 0, "ISIC_8": 0},
    }.items():
        for name in rows:
            picture(root / f"ISIC2018_Task3_{stage}_Input" / f"{name}.jpg")
        truth = root / f"ISIC2018_Task3_{stage}_GroundTruth"
        truth.mkdir()
        with (truth / f"{truth.name}.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["image", "MEL", "NV"])
            writer.writerows([name, float(1 - nv), float(nv)] for name, nv in rows.items())
    return root


@pytest.mark.parametrize("packed", [False, True])
def test_isic(tmp_path, packed):
    raw = isic_folder(tmp_path / "folder")
    if packed:
        (tmp_path / "raw").mkdir()
        for part in list(raw.iterdir()):
            with zipfile.ZipFile(tmp_path / "raw" / f"{part.name}.zip", "w") as bundle:
                for file in part.iterdir():
                    bundle.write(file, f"{part.name}/{file.name}")
        raw = tmp_path / "raw"
    data = prepare("isic2018", raw, tmp_path / "out", counts=SMALL)
    assert [s.path.stem[-1] for s in data.samples] == list("1235678")
    assert data.layout == "images + data.json"


def test_isic_says_what_is_missing(tmp_path):
    raw = isic_folder(tmp_path / "raw")
    (raw / "ISIC2018_Task3_Test_Input" / "ISIC_7.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of the 4 files .*ISIC_7\.jpg"):
        prepare("isic2018", raw, tmp_path / "out", counts=SMALL)
    with pytest.raises(DataError, match="must hold ISIC2018_Task3_Training_Input"):
        prepare("isic2018", raw / "ISIC2018_Task3_Test_Input", tmp_path / "out", counts=SMALL)


# --- BraTS2021 from NIfTI -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def brats_cases(tmp_path_factory):
    """Five scans of the challenge's shape; the first voxel axis is x, so rows of a slice are y."""
    import nibabel

    root = tmp_path_factory.mktemp("brats")
    for case in range(5):
        flair = np.zeros((240, 240, 155), np.int16)
        flair[40:200, 30:210, 20:140] = 500
        flair[60:70, 100:104, 20:140] = 1000
        seg = np.zeros(flair.shape, np.uint8)
        seg[100:120, 50:60, 60:80] = 4
        folder = root / f"BraTS2021_{case:05d}"
        folder.mkdir()
        for name, data in (("flair", flair), ("seg", seg)):
            image = nibabel.Nifti1Image(data, np.diag([-1, -1, 1, 1]))
            nibabel.save(image, folder / f"{folder.name}_{name}.nii.gz")
        (folder / f"{folder.name}_t1.nii.gz").touch()
    return root


def test_brats_from_cases(brats_cases, tmp_path):
    options = {"cases": 5, "test_cases": 2, "seed": 1}
    data = prepare("brats2021", brats_cases, tmp_path / "out", **options)
    # 14 slices a scan from 42 on; 62, 67, 72, 77 hold tumour.
    assert data.counts() == {
        ("train", "normal"): 30,
        ("test", "normal"): 20,
        ("test", "anomalous"): 8,
    }
    assert any("the authors' own draw has 4211" in note for note in data.notes)
    case = {s.path.name[:15] for s in data.split("test")}
    assert len(case) == 2
    assert not case & {s.path.name[:15] for s in data.split("train")}
    tumour = next(s for s in data.samples if s.is_anomalous)
    assert tumour.path.name.endswith("_flair_062.png")
    assert tumour.mask is not None
    with Image.open(tumour.path) as image, Image.open(tumour.mask) as mask:
        pixels, marked = np.asarray(image), np.asarray(mask)
    assert pixels.shape == marked.shape == (208, 208)
    assert pixels[100 - 16, 65 - 16] == 255  # y, x, less the crop
    assert pixels[150 - 16, 65 - 16] == 128
    assert set(np.unique(marked)) == {0, 255}
    assert marked[50 - 16 : 60 - 16, 100 - 16 : 120 - 16].all()
    assert (marked > 0).sum() == 200
    again = prepare("brats2021", brats_cases, tmp_path / "again", **options)
    assert contents(tmp_path / "again") == contents(tmp_path / "out")
    assert again.counts() == data.counts()


def test_brats_counts_its_scans_strictly(brats_cases, tmp_path):
    with pytest.raises(DataError, match=r"or 1251 scans .* found 5"):
        prepare("brats2021", brats_cases, tmp_path / "out")
    with pytest.raises(SettingsError, match="test_cases must be between 0 and 5"):
        prepare("brats2021", brats_cases, tmp_path / "out", cases=5, test_cases=5)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "X_flair.nii.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match="1 have none: X"):
        prepare("brats2021", tmp_path / "raw", tmp_path / "out", cases=2, test_cases=1)
    for name in ("X_seg", "Y_flair", "Y_seg"):
        (tmp_path / "raw" / f"{name}.nii.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"X_flair\.nii\.gz: the NIfTI cannot be read"):
        prepare("brats2021", tmp_path / "raw", tmp_path / "out", cases=2, test_cases=1)
    assert_nothing_left(tmp_path, "raw")


# --- archives and folders -------------------------------------------------------------------------


def test_damaged_and_hostile_archives(tmp_path):
    (tmp_path / "raw.zip").write_bytes(b"neither zip nor tar")
    with pytest.raises(DataError, match="must be a folder, or a zip or tar archive"):
        prepare("rsna", tmp_path / "raw.zip", tmp_path / "out")
    good = tmp_path / "good.tar.gz"
    with tarfile.open(good, "w:gz") as bundle:
        bundle.add(benchmark_archive(tmp_path / "raw"), "RSNA")
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(good.read_bytes()[:-400])
    with pytest.raises(DataError, match=r"archive is damaged|missing"):
        prepare("rsna", cut, tmp_path / "out", counts=SMALL)
    with tarfile.open(tmp_path / "bad.tar", "w") as bundle:
        bundle.add(good, "../../escaped.png")
    with pytest.raises(DataError, match="not allowed"):
        prepare("rsna", tmp_path / "bad.tar", tmp_path / "out")
    assert not (tmp_path.parent / "escaped.png").exists()
    assert_nothing_left(tmp_path, "raw", "raw.zip", "good.tar.gz", "cut.tar.gz", "bad.tar")


def test_new_folder_cleans_up_and_reports_what_the_disk_says(tmp_path):
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "a") as work:
        (work / "file").write_text(str(1 / 0))
    with pytest.raises(DataError, match="No space left"), new_folder(tmp_path / "a"):
        raise OSError(28, "No space left on device")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be made"), new_folder(tmp_path / "file" / "a"):
        pass
    assert_nothing_left(tmp_path, "file")


@pytest.mark.real_data
@pytest.mark.slow
def test_real_brain_tumor_by_its_split(real_data, tmp_path):
    split = real_data / "brain_tumor" / "data.json"
    data = prepare("brain_tumor", split.parent / "images", tmp_path / "out", split=split)
    lists = json.loads(split.read_text())
    expected = [*lists["train"]["0"], *lists["test"]["0"], *lists["test"]["1"]]
    assert [s.path.name for s in data.samples] == expected


def test_phantom_needs_no_download(tmp_path):
    data = prepare("phantom", None, tmp_path / "out", counts=SMALL, image_size=32, seed=3)
    assert data.layout == "MVTec/BMAD"
    assert open_dataset(tmp_path / "out").has_masks
