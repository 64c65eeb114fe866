"""The panel: known truths of its score and p-value, its members, and the run that keeps it."""

import numpy as np
import pytest
import torch
from scipy.stats import betabinom

from normalis import AnomalyDetector, models
from normalis.calibration.panel import (
    JOINED,
    Readings,
    panel_p_values,
    panel_patient_p_values,
    surprise,
)
from normalis.errors import DataError, MetricError, SettingsError
from normalis.panel import Panel, PanelSettings, _joined
from normalis.scoring import joined_scores
from normalis.training.loop import fit
from normalis.training.settings import TrainingSettings

READINGS = Readings(
    names=(JOINED, "spade", "feature-knn", "feature-gaussian"),
    kinds=("place", "", "whole", "whole"),
)


def readings(count, *, seed=0, dof=3):
    """Return heavy-tailed, correlated, positive readings (4, count)."""
    generator = np.random.default_rng(seed)
    mix = generator.normal(size=(4, 4))
    return np.exp(mix @ generator.standard_t(dof, size=(4, count)))


# ---------------------------------------------------------------- the p-value


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2])
def test_p_values_of_normal_images_are_uniform(rate):
    """One new image against 39 held-out ones, 1500 times: flagged as often as promised."""
    repeats, held = 1500, 39
    flagged = 0
    for seed in range(repeats):
        x = readings(held + 1, seed=seed)
        p = panel_p_values(x[:, -1:], x[:, :-1], np.arange(held), READINGS)
        flagged += p[0] <= rate + 1e-9
    expected = np.floor(rate * (held + 1) + 1e-9) / (held + 1)
    error = np.sqrt(expected * (1 - expected) / repeats)
    assert abs(flagged / repeats - expected) < 3.5 * error


def test_the_realised_rate_of_one_calibration_is_beta_binomial():
    """200 splits of one population: as many inside the 95 % interval as there should be."""
    held, new, rate, inside = 99, 100, 0.05, 0
    low, high = betabinom.ppf([0.025, 0.975], new, 5, 95)
    for seed in range(200):
        x = readings(held + new, seed=seed)
        p = panel_p_values(x[:, held:], x[:, :held], np.arange(held), READINGS)
        inside += low <= (p <= rate + 1e-9).sum() <= high
    assert 182 <= inside <= 200  # of 190 or a little more: the interval is of whole numbers


def test_patients_with_any_image_flagged_are_as_many_as_promised():
    patients, images, repeats, flagged = 20, 4, 600, 0
    for seed in range(repeats):
        generator = np.random.default_rng(seed)
        own = np.repeat(generator.standard_t(3, size=(4, patients)), images, axis=1)
        x = np.exp(own + generator.normal(size=own.shape))
        unit = np.repeat(np.arange(patients - 1), images)
        held, new = x[:, : unit.size], x[:, unit.size :]
        p = panel_patient_p_values(new, np.zeros(images, int), held, unit, READINGS)
        flagged += p[0] <= 0.1 + 1e-9
    assert abs(flagged / repeats - 0.1) < 3.5 * np.sqrt(0.1 * 0.9 / repeats)


def test_copies_of_one_reading_flag_as_it_does():
    x = np.random.default_rng(0).lognormal(size=300)
    held, new = x[:200], x[200:]
    three = Readings(names=("a", "b", "c"), kinds=("place", "whole", "whole"))
    p = panel_p_values(np.tile(new, (3, 1)), np.tile(held, (3, 1)), np.arange(200), three)
    alone = (1 + (held[:, None] >= new).sum(0)) / 201
    np.testing.assert_allclose(p, alone, rtol=0, atol=1e-12)


def test_images_of_one_unit_weigh_together_as_one():
    held, unit = np.array([[1.0, 9.0, 9.0, 9.0, 2.0]]), np.array([0, 1, 1, 1, 2])
    one = Readings(names=("a",), kinds=("whole",))
    p = panel_p_values(np.array([[5.0, 20.0, 0.5]]), held, unit, one)
    np.testing.assert_allclose(p, [2 / 4, 1 / 4, 1.0])


def test_scores_keep_their_order_beyond_the_largest_held_out_image():
    held = readings(50)
    new = held.max(1, keepdims=True) * np.array([1.5, 3.0, 10.0, 1e6])
    score = surprise(new, held, READINGS)[0]
    assert (np.diff(score) > 0.1).all()
    np.testing.assert_allclose(panel_p_values(new, held, np.arange(50), READINGS), 1 / 51)


def test_what_one_kind_cannot_see_does_not_dilute_the_other():
    held = np.random.default_rng(0).lognormal(size=(4, 100))
    middle = np.median(held, axis=1)
    seen = middle.copy()
    seen[0] *= 100
    both = np.stack([middle, seen, np.where(np.arange(4) == 0, seen, middle / 100)], 1)
    score = surprise(both, held, READINGS)[0]
    assert score[0] < 0.1
    assert score[1] > 3
    assert score[2] == pytest.approx(score[1], rel=0.01)


def test_readings_of_another_panel_and_readings_that_are_no_numbers_are_refused():
    held = readings(20)
    with pytest.raises(MetricError, match="this panel has 4 readings"):
        surprise(held[:3], held, READINGS)
    with pytest.raises(MetricError, match="finite"):
        surprise(np.full((4, 1), np.nan), held, READINGS)


def test_the_member_that_is_most_surprised_is_named():
    z = np.array([[9.0, 9.0], [1.0, 0.0], [0.0, 3.0], [0.5, 1.0]])
    assert READINGS.most_surprised(z) == ["spade", "feature-knn"]


# ---------------------------------------------------------------- the joined map


def test_the_joined_map_is_the_weighted_geometric_mean():
    a, b = torch.full((1, 16, 16), 16.0), torch.full((1, 16, 16), 3.0)
    joined = _joined([a, b], [0.25, 1.0], 16)
    torch.testing.assert_close(joined, torch.full((1, 16, 16), (2 * 3.0) ** (1 / 1.25)))


def test_copies_of_one_map_join_to_that_map():
    a = torch.rand(2, 16, 16) + 0.1
    torch.testing.assert_close(_joined([a, a, a], [0.25] * 3, 16), a)


# ---------------------------------------------------------------- members


def blobs(count, *, seed=0, size=64):
    generator = np.random.default_rng(seed)
    line = np.linspace(-1, 1, size)
    centre = generator.normal(0, 0.15, (count, 2))
    y, x = (np.exp(-((line - centre[:, i, None]) ** 2) / 0.3) for i in (0, 1))
    noise = generator.normal(0, 0.02, (count, size, size))
    return (y[:, :, None] * x[:, None] + noise).clip(0, 1).astype(np.float32)


@pytest.fixture(scope="module")
def fitted():
    return AnomalyDetector(method="panel", image_size=64, epochs=2).fit(blobs(120))


def test_a_spot_is_found_where_it_is(fitted):
    x = blobs(6, seed=1)
    spotted = x.copy()
    spotted[:, 24:36, 40:52] = 1.0
    assert (fitted.anomaly_score(spotted) > fitted.anomaly_score(x)).all()
    highest = fitted.anomaly_map(spotted).reshape(6, -1).argmax(1)
    assert ((highest // 64 >= 20) & (highest // 64 < 40)).all()
    assert ((highest % 64 >= 36) & (highest % 64 < 56)).all()


def test_scores_do_not_depend_on_the_batch(fitted):
    x = blobs(5, seed=2)
    alone = np.concatenate([fitted.anomaly_score(x[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(fitted.anomaly_score(x), alone, rtol=1e-4, atol=1e-5)


def test_a_loaded_panel_says_the_same(fitted, tmp_path):
    fitted.save(tmp_path / "run")
    again = AnomalyDetector.load(tmp_path / "run")
    x = blobs(5, seed=3)
    np.testing.assert_array_equal(again.anomaly_score(x), fitted.anomaly_score(x))
    np.testing.assert_array_equal(again.p_value(x), fitted.p_value(x))
    np.testing.assert_array_equal(again.anomaly_map(x), fitted.anomaly_map(x))
    assert again.info_["members"] == ["ae-u", "feature-knn", "feature-gaussian", "spade"]


def test_calibration_names_the_member_that_saw_an_image(fitted):
    parts = fitted.fitted_.scored(blobs(3, seed=4))
    named = fitted.calibration_.seen_by(joined_scores(parts))
    assert set(named) <= set(fitted.info_["members"])


def test_advice_never_names_what_a_panel_refuses(fitted):
    (said,) = fitted.calibration_.advice(2 / (fitted.calibration_.n_units + 1))
    assert "an odd one among them" in said
    assert "cv+" not in said


def test_calibrating_anew_leaves_the_first_calibration_alone(fitted):
    x = blobs(4, seed=5)
    before = fitted.anomaly_score(x)
    other = fitted.fitted_.calibrate(blobs(30, seed=6) * 0.5)
    assert not np.allclose(other.anomaly_score(x), before)
    np.testing.assert_array_equal(fitted.anomaly_score(x), before)


def test_one_member_is_that_method():
    given = {"image_size": 32, "epochs": 1, "latent_dim": 2}
    x = blobs(30, size=32)
    alone = AnomalyDetector(method="ae-u", **given).fit(x)
    panel = AnomalyDetector(method="panel", members=["ae-u"], **given).fit(x)
    np.testing.assert_array_equal(panel.anomaly_score(x), alone.anomaly_score(x))
    assert panel.training_ == alone.training_


def test_two_copies_of_a_method_rank_as_it_does():
    given = {"method": "panel", "image_size": 64, "calibration": "split"}
    x, new = blobs(40), blobs(10, seed=7)
    one = AnomalyDetector(**given, members=["feature-knn"]).fit(x)
    two = AnomalyDetector(**given, members=["feature-knn", "feature-knn"]).fit(x)
    np.testing.assert_allclose(two.p_value(new), one.p_value(new))


def test_a_member_that_cannot_be_fitted_is_left_out_with_its_reason():
    panel = Panel(PanelSettings(image_size=32, members="feature-knn+mean-image"))
    pixels = torch.from_numpy((blobs(4, size=32) * 255).astype(np.uint8))[:, None]
    fit(panel, pixels, settings=TrainingSettings(epochs=1), device="cpu")
    assert list(panel.parts()) == ["mean-image"]
    assert "needs at least neighbours = 5 images, got 4" in panel.left_out["feature-knn"]
    assert panel.settings.members == "mean-image"


def test_a_panel_that_loses_all_members_says_why():
    panel = Panel(PanelSettings(image_size=32, members="feature-knn"))
    with pytest.raises(DataError, match="no member of the panel could be fitted: feature-knn"):
        panel.leave_out("feature-knn", "too few")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"calibration": "cv+"}, "must be split or none, got cv+"),
        ({"scorer": "l2"}, "reads each member by the member's own scorer"),
        ({"members": []}, "members must be a list of methods"),
        ({"members": ["ae-u", "spad"]}, "did you mean 'spade'"),
        ({"members": ["panel", "spade"]}, "members must be methods"),
    ],
)
def test_what_a_panel_cannot_do_is_refused_before_any_image_is_read(settings, match):
    with pytest.raises(SettingsError, match=match):
        AnomalyDetector(method="panel", **settings).fit(blobs(4))


def test_the_panel_is_a_method_by_name():
    assert models.model_names()[0] == "panel"
    assert models.method_name(Panel) == "panel"


def test_a_panel_of_two_networks_keeps_one_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("normalis.training.checkpoints.EVERY_S", -1.0)
    detector = AnomalyDetector(method="panel", members=["ae-u", "ae"], image_size=32, epochs=3)
    detector.fit(blobs(30, size=32), run=tmp_path / "run")
    assert detector.info_["members"] == ["ae-u", "ae"]
    assert not detector.info_["left_out"]
