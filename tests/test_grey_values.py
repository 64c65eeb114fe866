"""Units of grey values: compared within training and when scoring, turned or refused, said."""

import csv
import json
import re

import numpy as np
import pytest
from PIL import Image

from normalis.datasets import Dataset
from normalis.datasets.base import Sample
from normalis.detector import AnomalyDetector
from normalis.errors import DataError, NormalisWarning
from normalis.images import IntensityRule
from normalis.images.units import are_comparable, mixture
from normalis.loading.arrays import ImageSettings, from_array, load, stream
from normalis.output.folder import score_to_folder
from test_images_dicom import make, write

SMALL = ImageSettings(image_size=16)
CT = {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": -1024}


@pytest.fixture
def files(tmp_path):
    """Return a function that writes images of a kind and returns samples."""

    def some(kind, count=4, seed=0, **tags):
        found = []
        for number in range(count):
            rng = np.random.default_rng([seed, number])
            values = rng.integers(0, 2000, (16, 16), dtype=np.uint16)
            path = tmp_path / f"{kind.replace(' ', '_')}_{seed}_{number}"
            if kind == "8 bit":
                Image.fromarray((values // 8).astype(np.uint8)).save(path, "PNG")
            elif kind == "16 bit":
                Image.fromarray(values).save(path, "PNG")
            elif kind == "float":
                Image.fromarray((values / 2000).astype(np.float32)).save(path, "TIFF")
            elif kind == "8 bit DICOM":
                write(path, make((values // 8).astype(np.uint8), bits=8, **tags))
            else:
                write(path, make(values, bits=12, **tags))
            found.append(Sample(path=path, split="train"))
        return found

    return some


WINDOW = {"WindowCenter": 1000, "WindowWidth": 2000}


# --- training -----------------------------------------------------------------------------------


def test_rescale_that_half_of_a_ct_lacks_is_said_with_names_and_remedy(files):
    bare = files("bare", Modality="CT")
    with pytest.warns(NormalisWarning, match=r"4 images are .*HU.*4 raw .*bare_0_0.*convert"):
        loaded = load([*files("ct", **CT), *bare], SMALL)
    assert "state no Rescale Slope" in loaded.notes[0]
    assert loaded.rule.units == ("HU", "raw")


def test_windows_that_differ_in_a_ct_are_said_and_values_are_hu(files):
    one = files("a", WindowCenter=40, WindowWidth=400, **CT)
    other = files("b", WindowCenter=-600, WindowWidth=1500, **CT)
    with pytest.warns(NormalisWarning, match="windows differ .*values are in HU"):
        loaded = load([*one, *other], SMALL)
    assert not loaded.rule.voi
    assert loaded.rule.units == ("HU",)
    assert -1030 < loaded.rule.low < -900
    alone = load(one, SMALL)
    assert not alone.notes
    assert alone.rule.units == ("HU",)


def test_windows_that_half_of_8_bit_dicom_have_are_left_aside(files):
    plain, windowed = files("8 bit DICOM"), files("8 bit DICOM", seed=1, **WINDOW)
    loaded = load([*plain, *windowed], SMALL)
    assert loaded.pixels.dtype == np.uint8
    assert (loaded.rule.low, loaded.rule.high, loaded.rule.voi) == (0, 255, False)
    again = load(windowed, SMALL, rule=loaded.rule)
    np.testing.assert_array_equal(again.pixels, loaded.pixels[4:])
    deep = load([*windowed, *files("16 bit", 1)], SMALL, rule=loaded.rule)
    assert "raw stored values" in deep.skipped[0][1]


def test_8_bit_and_windowed_images_share_the_scale_of_a_viewer(files):
    windowed = files("mr", WindowCenter=1000.5, WindowWidth=2001)
    loaded = load([*files("8 bit"), *windowed], SMALL)
    assert not loaded.notes
    assert (loaded.rule.low, loaded.rule.high, loaded.rule.voi) == (0, 1, True)
    np.testing.assert_allclose(loaded.pixels[4:].max(), 1, atol=0.02)


def test_a_placeholder_among_the_normals_is_left_out_with_its_reason(files, tmp_path):
    good = files("16 bit", 14)
    for number, value in enumerate((1e20, 3e38)):
        path = tmp_path / f"odd{number}.tif"
        values = np.full((16, 16), value, np.float32)
        values[0] = 5
        Image.fromarray(values).save(path)
        good.append(Sample(path=path, split="train"))
    loaded = load(good, SMALL)
    assert loaded.rule.high < 2000
    assert [path.name for path, _ in loaded.skipped] == ["odd0.tif", "odd1.tif"]
    assert "1e+20, where the training images usually lie" in loaded.skipped[0][1]
    assert "stand for missing values" in loaded.skipped[1][1]


def test_an_outlier_that_decides_the_rule_is_said(files, tmp_path):
    Image.fromarray(np.linspace(0, 60_000, 256).reshape(16, 16).astype(np.uint16)).save(
        tmp_path / "bright.png"
    )
    odd = Sample(path=tmp_path / "bright.png", split="train")
    with pytest.warns(NormalisWarning, match=r"because of 1 files \(bright.png\)"):
        load([*files("16 bit", 14), odd], SMALL)


def test_the_units_of_padding_and_stated_identity_mix(files):
    stated = files("mr", RescaleSlope=1, RescaleIntercept=0)
    assert not load([*stated, *files("bare")], SMALL).notes
    assert mixture(["own", "HU", "HU"], ["a", "b", "c"]) is None
    assert mixture(["8 bit", "windowed"], ["a", "b"]) is None
    assert "1 in HU" in mixture(["raw", "raw", "HU"], ["a", "b", "c"])
    assert not are_comparable("8 bit", ["raw"])
    assert not are_comparable("rescaled (BQML)", ["HU"])


# --- scoring ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trained", "scored", "reason"),
    [
        ("16 bit", "8 bit", "8 bit, while the model was fitted on deeper images only"),
        ("8 bit", "16 bit", "there is no rule for its intensities"),
        ("ct", "bare", "raw stored values of more than 8 bits, while .* in HU"),
        ("bare", "ct", "in HU .*, while those of the training images are raw"),
        ("mr", "bare", "no window in its header"),
        ("mr", "8 bit", "8 bit, while the model was fitted on deeper images only"),
    ],
)
def test_other_units_than_the_training_images_are_refused(files, trained, scored, reason):
    tags = {"ct": CT, "bare": {"Modality": "CT"}, "mr": {"Modality": "MR", **WINDOW}}
    of_training, of_new = tags.get(trained, {}), tags.get(scored, {})
    rule = load(files(trained, **of_training), SMALL).rule
    new = files(scored, seed=9, **of_new)
    streamed = list(stream(new, SMALL, rule=rule, need_one=False))
    together = [*files(trained, 1, **of_training), *new]
    loaded = load(together, SMALL, rule=rule, fit_rule=False)
    for skipped in ([one for part in streamed for one in part.skipped], loaded.skipped):
        assert [path for path, _ in skipped] == [s.path for s in new]
        assert re.search(reason, skipped[0][1])


def test_a_model_of_8_bit_images_scores_a_window_and_says_so(files):
    assert load(files("8 bit"), SMALL).rule is None
    shown = files("mr", WindowCenter=1000.5, WindowWidth=2001)
    with pytest.warns(NormalisWarning, match="scored as their own window shows"):
        (batch,) = stream(shown, SMALL, rule=None)
    assert not batch.skipped
    plain = load(shown, SMALL, rule=IntensityRule(low=0, high=2000)).pixels
    np.testing.assert_allclose(batch.pixels, plain, atol=1e-3)


def test_a_rule_of_an_earlier_version_refuses_nothing_new(files):
    body = {"low": 0, "high": 2000, "source": "x", "voi": False}
    old = IntensityRule.from_dict(body)
    assert old.units is None
    loaded = load([*files("16 bit"), *files("8 bit"), *files("ct", **CT)], SMALL, rule=old)
    assert not loaded.skipped
    body = load(files("16 bit"), SMALL).rule.to_dict()
    kept = IntensityRule.from_dict(json.loads(json.dumps(body)))
    assert kept.units == ("raw",)


@pytest.mark.parametrize(
    ("trained", "scored", "reason"),
    [
        (np.float32, lambda x: x * 255, "floats within 0 and 1"),
        (np.int32, lambda x: x.astype(np.uint8), "fitted on deeper images only"),
        (np.int32, lambda x: x.astype(np.float32), None),
    ],
)
def test_arrays_are_compared_as_files_are(rng, trained, scored, reason):
    x = rng.random((4, 16, 16)).astype(np.float32)
    x = x if trained == np.float32 else (x * 255).astype(trained)
    rule = from_array(x, SMALL).rule
    new = scored(x)
    if reason is None:
        assert from_array(new, SMALL, rule=rule, fit_rule=False).rule is rule
        return
    with pytest.raises(DataError, match=reason):
        from_array(new, SMALL, rule=rule, fit_rule=False)


def test_arrays_of_other_kinds_still_fit_where_that_is_exact(rng):
    x = rng.integers(0, 256, (4, 16, 16), dtype=np.uint8)
    unit = from_array(x / 255.0, SMALL)
    same = from_array(x, SMALL, rule=unit.rule, fit_rule=False)
    np.testing.assert_array_equal(same.pixels[:, 0], x)
    whole = from_array(x.astype(np.int32) * 8, SMALL)
    floats = from_array(x.astype(np.float64) * 8, SMALL, rule=whole.rule, fit_rule=False)
    np.testing.assert_array_equal(floats.pixels, whole.pixels)
    with pytest.raises(DataError, match="lie within 0 and 1"):
        from_array(x / 255.0, SMALL, rule=whole.rule, fit_rule=False)


@pytest.mark.parametrize("bad", [1e308, 3e38])
def test_an_array_of_numbers_that_are_none_names_the_image(rng, bad):
    x = rng.random((4, 16, 16))
    x[2, 0, 0] = bad
    with pytest.raises(DataError, match="image 2 holds"):
        from_array(x, SMALL)


# --- to the end ---------------------------------------------------------------------------------


@pytest.fixture
def fitted(files):
    data = Dataset(
        name="x",
        root=files("16 bit", 1)[0].path.parent,
        layout="files",
        samples=tuple(files("16 bit", 12)),
    )
    detector = AnomalyDetector(
        method="pca", latent_dim=2, image_size=16, calibration="none", device="cpu"
    )
    return detector.fit(data)


def test_one_odd_file_is_one_line_of_skipped_csv(files, fitted, tmp_path):
    new = files("16 bit", 6, seed=5)
    Image.fromarray(np.full((16, 16), 3e38, np.float32)).save(tmp_path / "nodata.tif")
    Image.fromarray(np.full((16, 16), 1e20, np.float32)).save(tmp_path / "far.tif")
    new[2:2] = [Sample(path=tmp_path / n, split="test") for n in ("nodata.tif", "far.tif")]
    score_to_folder(fitted, new, out=tmp_path / "scored", root=tmp_path)
    with (tmp_path / "scored" / "skipped.csv").open(newline="") as stream:
        reasons = {row["path"].rsplit("/", 1)[-1]: row["reason"] for row in csv.DictReader(stream)}
    assert set(reasons) == {"nodata.tif", "far.tif"}
    with (tmp_path / "scored" / "scores.csv").open(newline="") as stream:
        scores = [float(row["anomaly_score"]) for row in csv.DictReader(stream)]
    assert len(scores) == 6
    assert np.isfinite(scores).all()


def test_a_score_that_is_not_finite_is_the_files_reason(files, fitted, monkeypatch):
    from normalis import scoring

    new = files("16 bit", 6, seed=5)
    real = scoring.score_pixels

    def odd(*args, **wanted):
        scores, maps, rebuilt = real(*args, **wanted)
        scores[:, 3] = np.nan
        return scores, maps, rebuilt

    monkeypatch.setattr(scoring, "score_pixels", odd)
    skipped = []
    parts = list(fitted.fitted_.stream(new, skipped=skipped))
    assert [path for path, _ in skipped] == [new[3].path]
    assert "its score is nan" in skipped[0][1]
    assert sum(len(part.rows) for part in parts) == 5


# --- a value that stands alone ------------------------------------------------------------------


def with_missing(count, missing, *, value=-9999.0):
    """Return (count, 32, 32) floats of 0 to 100, the first ``missing`` with a wide border."""
    x = np.random.default_rng(3).uniform(0, 100, (count, 32, 32)).astype(np.float32)
    x[:missing, :6] = value
    return x


def write_floats(folder, images):
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:02d}.tif")
    return [Sample(path=p, split="train") for p in sorted(folder.iterdir())]


@pytest.mark.parametrize("missing", [3, 10, 20])
@pytest.mark.parametrize("value", [-9999.0, 65535.0])
def test_a_value_for_missing_ones_that_decides_the_rule_is_said(tmp_path, missing, value):
    images = with_missing(20, missing, value=value)
    said = rf"{missing} of 20 training images hold {value:.6g} \(19% of their pixels; .*runs from"
    with pytest.warns(NormalisWarning, match=said):
        loaded = load(write_floats(tmp_path / "f", images), SMALL)
    assert len(loaded.notes) == 1
    with pytest.warns(NormalisWarning, match=said):
        from_array(images, SMALL)


def test_background_of_zero_and_a_hot_pixel_are_no_missing_values(tmp_path, recwarn):
    images = 1000 + with_missing(20, 0)
    images[:, :6] = 0
    images[:, 16, 16] = 60_000
    assert not load(write_floats(tmp_path / "f", images), SMALL).notes
    from_array(images, SMALL)
    assert not recwarn


def test_a_value_for_missing_ones_that_training_lacks_is_not_scored(tmp_path):
    trained = from_array(with_missing(8, 0), SMALL)
    new = write_floats(tmp_path / "f", with_missing(3, 1))
    (batch,) = stream(new, SMALL, rule=trained.rule)
    ((path, reason),) = batch.skipped
    assert (path.name, len(batch.rows)) == ("00.tif", 2)
    assert "holds -9999, where the training images usually lie within" in reason
    with pytest.raises(DataError, match="-9999"):
        from_array(with_missing(3, 1), SMALL, rule=trained.rule, fit_rule=False)


def test_a_few_arrays_that_decide_the_rule_are_said():
    x = with_missing(15, 0)
    x[4] *= 1000
    with pytest.warns(NormalisWarning, match=r"because of 1 files \(image 4\)"):
        from_array(x, SMALL)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_negated_images_are_refused_with_both_ranges(tmp_path, scale):
    x = scale * np.random.default_rng(3).uniform(0, 1, (8, 32, 32)).astype(np.float32)
    x[:, :8] = 0
    trained = from_array(x, SMALL)
    said = rf"run from -{scale:.3g}\S* to -?0, most of them below the 0 to .* negated"
    with pytest.raises(DataError, match=said.replace(f"-{scale:.3g}", r"-\d")):
        from_array(-x, SMALL, rule=trained.rule, fit_rule=False)
    files = write_floats(tmp_path / "f", [-x[0], np.zeros_like(x[0]), x[1]])
    (batch,) = stream(files, SMALL, rule=trained.rule)
    assert [path.name for path, _ in batch.skipped] == ["00.tif"], "one that is dark is scored"
    assert "negated, or in other units? Export it" in batch.skipped[0][1]


@pytest.mark.parametrize("kind", ["16 bit", "mr", "array"])
@pytest.mark.parametrize(
    ("scale", "where"), [(16.0, "above the"), (1 / 64, "in the lowest tenth of the")]
)
def test_values_of_other_bits_than_the_training_images_are_scored_and_said(
    files, tmp_path, kind, scale, where
):
    values = np.random.default_rng(5).integers(4000, 60000, (9, 16, 16))
    new = (values[0] * scale / 16).astype(np.uint16)
    if kind == "array":
        trained = from_array((values[1:] / 16).astype(np.uint16), SMALL)
        with pytest.warns(NormalisWarning, match=f"image 0: .*most of them {where}"):
            from_array(new[None], SMALL, rule=trained.rule, fit_rule=False)
        return
    for number, image in enumerate([new, *(values[1:] / 16).astype(np.uint16)]):
        if kind == "mr":
            write(tmp_path / f"{number}", make(image, bits=16, Modality="MR"))
        else:
            Image.fromarray(image).save(tmp_path / f"{number}", "PNG")
    first, *rest = (Sample(path=tmp_path / str(n), split="train") for n in range(9))
    rule = load(rest, SMALL).rule
    with pytest.warns(NormalisWarning, match=f"^0: its values .*most of them {where}.*other bits"):
        (batch,) = stream([first, rest[0]], SMALL, rule=rule)
    assert len(batch.rows) == 2


def test_a_window_of_the_users_own_refuses_no_image_for_lying_outside(tmp_path):
    window = ImageSettings(image_size=16, window=(10.0, 20.0))
    x = np.random.default_rng(3).uniform(0, 2, (8, 32, 32)).astype(np.float32)
    files = write_floats(tmp_path / "f", x)
    rule = load(files, window).rule
    (batch,) = stream(files, window, rule=rule)
    assert (len(batch.rows), batch.skipped) == (8, [])
