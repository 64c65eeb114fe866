"""The audit on planted faults, on none, and on real images whose faults are known."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from normalis.audit import audit, image_key
from normalis.audit.confounds import class_differences, find_shifts, separate
from normalis.datasets import KNOWN_PATTERNS, open_dataset
from normalis.datasets.base import Dataset, Sample
from normalis.detector import AnomalyDetector
from normalis.errors import DataError

SIZE = 96
KERMANY = KNOWN_PATTERNS["paediatric chest X-rays"]
TCGA = KNOWN_PATTERNS["TCGA"]


def smooth_images(seed, n):
    rng = np.random.default_rng(seed)
    images = gaussian_filter(rng.normal(size=(n, SIZE, SIZE)), (0, 4, 4))
    images -= images.min(axis=(1, 2), keepdims=True)
    return (255 * images / images.max(axis=(1, 2), keepdims=True)).astype(np.uint8)


def write(folder, name, pixels):
    path = folder / f"{name}.png"
    Image.fromarray(np.ascontiguousarray(pixels)).save(path)
    return path


def dataset(samples, **more):
    return Dataset(name="made", root=samples[0].path.parent, layout="made", samples=samples, **more)


@pytest.fixture
def clean(tmp_path):
    """Thirty training images, fifteen normal and fifteen anomalous test images; nothing wrong."""
    samples = []
    for i, pixels in enumerate(smooth_images(0, 60)):
        split = "train" if i < 30 else "test"
        path = write(tmp_path, f"image_{i}", pixels)
        samples.append(Sample(path=path, split=split, is_anomalous=i >= 45))
    return tuple(samples)


def planted(path):
    return Sample(path=path, split="test", is_anomalous=False)


def texts(found, severity):
    return [f.text for f in found.findings if f.severity == severity]


def test_nothing_is_found_where_nothing_is_wrong(clean):
    found = audit(dataset(clean))
    counts = found.to_dict()["duplicates"]
    assert counts["exact_across_splits"] == counts["pixel_across_splits"] == 0
    assert counts["near_or_mirrored_across_splits"] == {"0.999": 0, "0.95": 0}
    assert counts["shifted_across_splits"] == {"0.999": 0, "0.95": 0}
    assert counts["distinct_train"] == 30
    assert counts["twins"] == []
    assert not found.has_leaks
    assert {f.severity for f in found.findings} == {"note"}


def test_planted_copies_are_told_apart(clean, tmp_path):
    pixels = [np.asarray(Image.open(s.path)) for s in clean[:5]]
    jpeg = tmp_path / "reencoded.jpg"
    Image.fromarray(pixels[1]).save(jpeg, quality=60)
    moved = np.roll(pixels[3], (3, 3), axis=(0, 1))
    moved[:3], moved[:, :3] = 0, 0
    paths = [
        shutil.copy(clean[0].path, tmp_path / "exact.png"),
        jpeg,
        write(tmp_path, "mirrored", pixels[2][:, ::-1]),
        write(tmp_path, "shifted", moved),
        write(tmp_path, "rewritten", pixels[4]),
    ]
    paths[4].write_bytes(paths[4].read_bytes() + b"trailing bytes change the file only")
    found = audit(dataset((*clean, *map(planted, paths))))
    counts = found.to_dict()["duplicates"]
    relations = {t["image"]: (t["relation"], t["twin"]) for t in counts["twins"]}
    names = ["bytes", "as it lies", "mirrored", "shifted", "pixels"]
    want = {
        str(path): (name, str(sample.path))
        for path, name, sample in zip(paths, names, clean, strict=False)
    }
    assert relations == want
    assert counts["exact_across_splits"] == 1
    assert counts["pixel_across_splits"] == 2
    assert counts["near_across_splits"]["0.95"] == 3
    assert counts["near_or_mirrored_across_splits"]["0.95"] == 4
    assert found.leaked() == {str(paths[i]) for i in (0, 1, 4)}
    assert found.leaked(mirrored=True, shifted=True) == {str(p) for p in paths}
    assert found.training_duplicates() == {str(clean[i].path) for i in (0, 1, 4)}
    assert found.has_leaks
    assert "1 of 35 test images is byte for byte in training" in texts(found, "leak")[0]
    assert found.findings[0].severity == "leak"


def test_repetitions_within_training_are_grouped(clean, tmp_path):
    again = tmp_path / "again.png"
    shutil.copy(clean[2].path, again)
    found = audit(dataset((*clean, Sample(path=again, split="train", is_anomalous=False))))
    assert found.repeated() == {str(again)}
    assert found.groups[str(again)] == found.groups[str(clean[2].path)]
    assert len(set(found.groups.values())) == len(clean)
    assert not found.has_leaks
    counts = found.counts()
    assert (counts["distinct_train"], counts["distinct_train_by_bytes"]) == (30, 30)
    assert counts["groups"] == {"count": 1, "images": 2, "largest": 2}


def test_patients_on_both_sides_are_a_leak(clean):
    named = [
        Sample(path=s.path, split=s.split, is_anomalous=s.is_anomalous, patient_id=str(i % 40))
        for i, s in enumerate(clean)
    ]
    found = audit(dataset(tuple(named)))
    assert found.patients() == {"train": 30, "test": 30, "shared": 20}
    assert texts(found, "leak") == [
        "20 patients are in both training and test (20 test images): split by patient."
    ]
    assert found.groups[str(clean[0].path)] == found.groups[str(clean[40].path)]


def test_a_copy_of_another_known_patient_is_a_lookalike(clean, tmp_path):
    jpeg = tmp_path / "p99.jpg"
    Image.fromarray(np.asarray(Image.open(clean[1].path))).save(jpeg, quality=60)
    named = [
        Sample(path=s.path, split=s.split, is_anomalous=s.is_anomalous, patient_id=f"p{i}")
        for i, s in enumerate(clean)
    ]
    extra = Sample(path=jpeg, split="test", is_anomalous=False, patient_id="p99")
    found = audit(dataset((*named, extra)))
    assert found.counts()["lookalikes_across_splits"]["0.95"] == 1
    assert found.leaked() == frozenset()
    assert not found.has_leaks


def test_file_name_pattern_is_offered_and_used_only_when_given(tmp_path):
    samples = []
    for i, pixels in enumerate(smooth_images(1, 12)):
        path = write(tmp_path, f"TCGA_CS_{4000 + i // 2}_flair_{i}", pixels)
        samples.append(Sample(path=path, split="train" if i < 7 else "test", is_anomalous=False))
    data = dataset(tuple(samples))
    found = audit(data)
    assert found.patients() == {"train": None, "test": None, "shared": None}
    assert any("TCGA" in text and "--patient-pattern" in text for text in texts(found, "note"))
    found = audit(data, patient_pattern=TCGA)
    assert found.patients() == {"train": 4, "test": 3, "shared": 1}
    assert found.pattern is None


def test_place_of_a_slice_is_read_only_from_stacks(tmp_path):
    samples = []
    for i, pixels in enumerate(smooth_images(4, 48)):
        path = write(tmp_path, f"p{i // 8}_{1 + i % 8}", pixels)
        split = "train" if i < 24 else "test"
        samples.append(Sample(path=path, split=split, is_anomalous=split == "test" and i % 8 > 3))
    scores = audit(dataset(tuple(samples)), patient_pattern=r"(p\d+)_").to_dict()["trivial"]
    assert scores["relative_position"]["auroc"] == 1
    scores = audit(dataset(tuple(samples)), patient_pattern=r"(p\d+_\d+)").to_dict()["trivial"]
    assert "relative_position" not in scores


def test_one_patient_id_for_all_is_no_patient(clean):
    named = tuple(
        Sample(path=s.path, split=s.split, is_anomalous=s.is_anomalous, patient_id="ANON")
        for s in clean
    )
    found = audit(dataset(named))
    assert found.patients()["shared"] is None
    assert any("'ANON'" in text for text in texts(found, "note"))


def test_file_size_that_gives_the_label_away(tmp_path):
    samples = []
    for i, pixels in enumerate(smooth_images(2, 60)):
        anomalous = i >= 40
        path = write(tmp_path, f"x{i}", pixels[: 64 if anomalous else SIZE])
        split = "train" if i < 20 else "test"
        samples.append(Sample(path=path, split=split, is_anomalous=anomalous))
    found = audit(dataset(tuple(samples)))
    scores = found.to_dict()["trivial"]
    assert scores["size=96x64"]["auroc"] == 1
    assert scores["size=96x64"]["detail"] == "20 of 20 anomalous, 0 of 20 normal"
    low = pytest.approx(0.025 ** (1 / 20))  # all that 20 images a class can prove
    assert scores["height_reversed"] | {"low": low, "high": 1} == scores["height_reversed"]
    assert any(text.startswith("height_reversed") for text in texts(found, "confound"))


def test_json_is_complete_and_plain(clean, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    found = audit(dataset((*clean, planted(broken)), notes=("One sentence.",)))
    read = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (read["images"], read["unreadable"]) == (60, 1)
    assert read["unreadable_files"][0]["path"] == str(broken)
    assert {"train", "test", "shared"} == read["patients"].keys()
    intensity = read["trivial"]["mean_intensity"]
    assert intensity["low"] <= intensity["auroc"] <= intensity["high"]
    reverse = read["trivial"]["mean_intensity_reversed"]["auroc"]
    assert reverse == pytest.approx(1 - intensity["auroc"])
    assert "One sentence." in [f["text"] for f in read["findings"]]
    for table in read["tables"]:
        assert table["rows"]
        assert all(len(row) == len(table["columns"]) for row in table["rows"])


def test_a_folder_of_normal_images_alone(clean):
    train = tuple(s for s in clean if s.split == "train")
    found = audit(dataset(train))
    assert len(found.facts) == 30
    assert found.baselines == found.shifts == ()
    assert not found.has_leaks


def test_a_test_without_labels(clean):
    samples = tuple(Sample(path=s.path, split=s.split) for s in clean)
    found = audit(dataset(samples))
    assert found.baselines == ()
    assert any("no labels" in text for text in texts(found, "note"))


def test_nothing_readable_is_an_error(tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"")
    with pytest.raises(DataError, match="readable"):
        audit(dataset((planted(broken),)))


def test_brighter_test_normals_are_a_shift(clean, tmp_path):
    samples = []
    for s in clean:
        pixels = np.asarray(Image.open(s.path))
        lifted = 128 + pixels // 2 if s.split == "test" else pixels
        path = write(tmp_path, f"lifted_{s.path.stem}", lifted)
        samples.append(Sample(path=path, split=s.split, is_anomalous=s.is_anomalous))
    found = audit(dataset(tuple(samples)))
    notable = {shift.name: shift for shift in found.shifts if shift.notable}
    assert notable["mean_intensity"].d > 2
    assert notable["contrast"].d < -2
    assert len(texts(found, "shift")) == len(notable)


def test_the_units_of_an_audit_are_those_of_a_fit(clean):
    named = [replace(s, patient_id=f"P{i // 4}") for i, s in enumerate(clean)]
    named[1] = replace(named[1], patient_id="ANONYMOUS")
    found = audit(dataset(tuple(named)))
    units = [found.groups[image_key(s)] for s in named]
    assert units[0] == units[2] == units[3] != units[1]
    assert found.training_units() == 9
    assert "1 of 60 files have a patient id that names nobody ('ANONYMOUS')" in "\n".join(
        texts(found, "note")
    )


def test_a_validation_split_that_was_trained_on_is_a_leak(clean):
    splits = ["validation" if i % 5 == 4 else "train" for i in range(30)]
    named = [
        replace(s, patient_id=f"P{i // 5}", split=splits[i] if i < 30 else "test")
        for i, s in enumerate(clean)
    ]
    (text,) = texts(audit(dataset(tuple(named))), "leak")
    assert text.startswith("P0, P1, P2, P3, P4 and 1 more are in both training and validation")


def test_an_audit_says_what_the_units_certify(clean):
    (text,) = [t for t in texts(audit(dataset(clean)), "note") if "normal training" in t]
    assert text.startswith("The normal training images are 30 images; patients are unknown")
    panel, single = text.split(". A single method (--method NAME) ")
    assert (
        "`fit` holds out 10 images, which certify false-positive rates from 1/11 = 9.1 %" in panel
    )
    assert panel.endswith("a steady threshold at 0.05 takes 119")
    assert single == (
        "is calibrated on all 30, by cv+: rates from 1/31 = 3.2 %, proven at twice the rate."
    )
    assert len(text) < 400


@pytest.mark.parametrize("count", [1, 2, 3])
def test_an_audit_promises_nothing_that_fit_refuses(clean, count):
    paths = [s.path for s in clean if s.split == "train"][:count]
    samples = tuple(replace(s, patient_id=None) for s in clean if s.path in paths)
    (text,) = [t for t in texts(audit(dataset(samples)), "note") if "normal training" in t]
    unfitted = AnomalyDetector(
        method="mean-image", image_size=16, calibration="split", device="cpu"
    )
    if count < 3:
        assert "`fit` needs at least 3 images to calibrate with" in text
        with pytest.raises(DataError, match="calibration needs at least 3 images"):
            unfitted.fit(paths)
    else:
        assert "holds out 1 image, which certifies false-positive rates from 1/2 = 50 %" in text
        assert unfitted.fit(paths).calibration_.n_units == 1


def test_what_an_audit_says_of_calibrating_is_what_fit_does(clean, tmp_path):
    paths = [s.path for s in clean if s.split == "train"]
    small = {"image_size": 16, "device": "cpu", "epochs": 1}
    panel = AnomalyDetector(members=["knn", "pca"], **small).fit(paths).calibration_
    single = AnomalyDetector(method="pca", **small).fit(paths).calibration_
    assert (panel.kind, panel.n_units) == ("split", 10)
    assert (single.kind, single.n_units) == ("cv+", 30)


def test_array_rows(tmp_path):
    images = smooth_images(3, 60)
    images[40] = images[0]
    file = tmp_path / "arrays.npz"
    np.savez(
        file,
        train=images[:30],
        test=images[30:],
        test_label=np.arange(30) >= 15,
        test_slice_pos=np.linspace(0, 1, 30),
    )
    data = open_dataset(file)
    found = audit(data)
    assert found.leaked(0.999) == {image_key(data.split("test")[10])}
    assert found.counts()["exact_across_splits"] == 0
    assert found.counts()["pixel_across_splits"] == 1
    assert found.to_dict()["trivial"]["slice_pos"]["auroc"] == 1


def test_progress_names_the_stages(clean):
    seen = {}
    audit(dataset(clean), progress=seen.__setitem__)
    assert {"training images", "test images", "headers", "copies"} <= seen.keys()
    assert set(seen.values()) == {1.0}


def test_separate_turns_properties_but_not_scores():
    labels = np.arange(40) >= 20
    up = np.arange(40.0)
    (score,) = separate({"a": -up}, labels)
    assert (score.name, score.auroc) == ("a", 0)
    (score,) = separate({"a": -up}, labels, either=True)
    assert (score.name, score.auroc) == ("a_reversed", 1)
    (score,) = separate({"a=1": (up < 20).astype(float)}, labels, either=True)
    assert (score.name, score.detail) == ("a!=1", "0 of 20 anomalous, 20 of 20 normal")


def test_class_differences_name_what_differs_most():
    rows = [{"scanner": "A" if i % 10 else "B", "age": i} for i in range(40)]
    first = class_differences(rows, np.arange(40) >= 20)[0]
    assert (first.name, first.anomalous, first.normal) == ("age", "median 29.5", "median 9.5")


def test_shift_of_numbers_matches_its_definition(rng):
    train, test = rng.normal(0, 1, 500), rng.normal(1, 1, 400)
    (shift,) = find_shifts({"a": train}, {"a": test})
    spread = np.sqrt((train.var() + test.var()) / 2)
    assert shift.d == pytest.approx((test.mean() - train.mean()) / spread)
    assert shift.notable


def test_shift_of_categories_is_total_variation():
    (shift,) = find_shifts({"a": ["x"] * 90 + ["y"] * 10}, {"a": ["x"] * 40 + ["y"] * 60})
    assert shift.distance == pytest.approx(0.5)
    assert (shift.train, shift.test) == ("x (90%)", "y (60%)")
    assert shift.notable


def test_chance_differences_are_not_notable(rng):
    names = {str(i): rng.normal(size=300) for i in range(20)}
    again = {str(i): rng.normal(size=300) for i in range(20)}
    assert not any(shift.notable for shift in find_shifts(names, again))


@pytest.mark.real_data
@pytest.mark.slow
def test_brain_tumor(real_data):
    found = audit(open_dataset(real_data / "brain_tumor"))
    read = found.to_dict()
    counts = read["duplicates"]
    assert (read["images"], read["unreadable"]) == (2200, 0)
    assert counts["exact_across_splits"] == 88
    assert counts["pixel_across_splits"] == 94
    assert counts["near_across_splits"] == {"0.999": 368, "0.95": 510}
    assert counts["near_or_mirrored_across_splits"] == {"0.999": 448, "0.95": 533}
    # 402 by the whole image; seven more differ inside their outline.
    assert counts["distinct_train"] == 409
    assert counts["distinct_train_by_bytes"] == 934
    assert 1000 - len(found.training_duplicates()) == 287  # 278 by the whole image
    anomalous = {f.key for f in found.facts if f.is_anomalous}
    assert not anomalous & found.leaked(mirrored=True, shifted=True)
    scores = read["trivial"]
    assert scores["mean_intensity_reversed"]["auroc"] == pytest.approx(0.80, abs=0.005)
    assert scores["size=512x512"]["auroc"] == pytest.approx(0.946, abs=0.0005)
    assert scores["size=512x512"]["detail"] == "547 of 600 anomalous, 12 of 600 normal"
    assert found.has_leaks


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "pattern", "lookalikes"), [("kermany_cxr", KERMANY, 7), ("lgg_flair", TCGA, 2)]
)
def test_disjoint_patients(real_data, name, pattern, lookalikes):
    found = audit(open_dataset(real_data / name), patient_pattern=pattern)
    assert found.patients()["shared"] == 0
    assert found.counts()["lookalikes_across_splits"]["0.95"] == lookalikes
    assert found.leaked() == frozenset()
    assert not found.has_leaks


def test_the_size_of_uncompressed_files_is_no_property(tmp_path):
    from PIL import Image

    from normalis.audit.inventory import take_inventory
    from normalis.datasets import Sample
    from normalis.loading.arrays import ImageSettings, load

    image = Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64))
    image.save(tmp_path / "raw.tif")
    image.save(tmp_path / "packed.tif", compression="tiff_deflate")
    image.save(tmp_path / "a.png")
    samples = [
        Sample(path=tmp_path / name, split="test") for name in ("raw.tif", "packed.tif", "a.png")
    ]
    facts = take_inventory(load(samples, ImageSettings()).rows)
    assert ["bytes" in fact.properties for fact in facts] == [False, True, True]


@pytest.mark.slow
@pytest.mark.real_data
def test_fundus_photographs_of_different_people_are_look_alikes(real_data):
    found = audit(open_dataset(real_data / "fundus"))
    counts = found.counts()
    near = counts["near_across_splits"]
    assert near["0.999"] == 0
    assert near["0.95"] < 40  # 389 by the images as a whole
    assert counts["lookalikes_across_splits"]["0.95"] > 300
