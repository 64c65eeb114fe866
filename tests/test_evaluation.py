"""The honest table: what is shown beside what, and that nothing is chosen silently."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normalis import metrics
from normalis.calibration.conformal import calibrate
from normalis.errors import MetricError
from normalis.evaluation import baseline_scores, compare, evaluate, independent_units


@pytest.fixture
def study(rng):
    """200 images of 100 patients; 30 normal ones have a twin in training and low scores."""
    labels = np.repeat(np.arange(100) % 2 == 0, 2)
    scores = rng.normal(size=200) + 1.5 * labels
    twin = np.zeros(200, dtype=bool)
    twin[np.flatnonzero(~labels)[:30]] = True
    scores[twin] -= 3.0
    return scores, labels, np.repeat(np.arange(100), 2), twin


def test_leaked_images_are_left_out_and_shown_alone(study):
    scores, labels, patient, twin = study
    found = evaluate(scores, labels, groups=patient, leaked={"0.95": twin, "0.999": 0 * twin})
    assert [s.name for s in found.subsets] == ["all", "without 0.95", "only 0.95"]
    everything, clean, only = found.subsets
    assert (everything.n_images, everything.n_normal, everything.n_units) == (200, 100, 100)
    assert (clean.n_images, clean.n_normal, clean.n_anomalous) == (170, 70, 100)
    assert (only.n_normal, only.n_anomalous) == (30, 100)
    assert clean.ranking["auroc"].value == metrics.auroc(scores[~twin], labels[~twin])
    assert clean.ranking["auroc"].value < everything.ranking["auroc"].value
    assert only.ranking["auroc"].value > everything.ranking["auroc"].value
    assert found.unit == "group"
    assert everything.ranking["auroc"] == metrics.bootstrap(
        metrics.auroc, scores, labels, groups=patient
    )


def test_baselines_are_compared_and_a_method_below_one_is_marked(study, rng):
    scores, labels, _, _ = study
    noise = rng.normal(size=200)
    better = labels + 0.1 * rng.normal(size=200)
    found = evaluate(scores, labels, baselines={"noise": noise, "one bit": better})
    first, second = found.all.baselines
    assert (first.name, first.beaten, second.name, second.beaten) == (
        "one bit",
        False,
        "noise",
        True,
    )
    assert found.all.beats_baselines is False
    assert second.comparison.test == "DeLong"
    p = [compare(scores, x, labels).p_value for x in (noise, better)]
    assert (second.adjusted_p, first.adjusted_p) == pytest.approx(tuple(metrics.holm(p)))
    alone = evaluate(scores, labels, baselines={"noise": noise})
    assert alone.beats_baselines is True
    assert evaluate(scores, labels).beats_baselines is None


def test_a_tie_does_not_beat_a_baseline(study):
    scores, labels, patient, _ = study
    found = evaluate(scores, labels, groups=patient, baselines={"itself": scores.copy()})
    (only,) = found.all.baselines
    assert not only.beaten
    assert only.comparison.test == "paired bootstrap"


def test_oracles_and_deployable_figures_are_apart(study, rng):
    scores, labels, patient, _ = study
    calibration = calibrate(rng.normal(size=300))
    flagged = calibration.p_values(scores) <= 0.05
    masks = np.zeros((200, 8, 8), dtype=bool)
    masks[labels, 2:5, 2:5] = True
    maps = rng.random((200, 8, 8)) + masks
    found = evaluate(
        scores, labels, groups=patient, flagged=flagged, rate=0.05, maps=maps, masks=masks,
        map_level=1.0, n_draws=100,
    )  # fmt: skip
    one = found.all
    assert set(one.ranking) == {
        "auroc",
        "average_precision",
        "pixel_auroc",
        "pixel_average_precision",
    }
    assert set(one.oracle) == {"sensitivity_at_5_percent_fpr", "best_dice"}
    assert set(one.deployable) == {"sensitivity", "false_positive_rate"}
    assert one.deployable["sensitivity"].value == pytest.approx(flagged[labels].mean())
    assert one.deployable["false_positive_rate"].value == pytest.approx(flagged[~labels].mean())
    exact = metrics.pixel_metrics(maps, masks)
    assert one.ranking["pixel_auroc"].value == exact.auroc
    sections = [row.section for row in found.table()]
    assert sections.index("oracle") == max(sections.index(s) for s in sections)
    assert all("label-tuned" in row.note for row in found.table() if row.section == "oracle")
    found_lesions = {row.name: row for row in found.table() if row.section == "lesion"}
    assert found_lesions["lesions found, 1 to 9 pixels"].value == 1.0
    assert np.isnan(found_lesions["lesions found, 300 or more pixels"].value)
    assert found_lesions["anomalous images coloured"].value == 1.0
    assert found_lesions["normal images coloured"].value == 0.0
    assert found_lesions["highest place in the lesion, 1 to 9 pixels"].value == 1.0


def test_lesions_and_images_are_counted_by_the_calibrated_map_and_pixels_by_the_raw_one():
    labels = np.repeat([False, True], 20)
    masks = np.zeros((40, 8, 8), bool)
    masks[labels, 2:6, 2:6] = True  # 16 pixels
    raw, calibrated = np.zeros((40, 8, 8)), np.zeros((40, 8, 8))
    raw[:, 0, 0] = 9.0  # a margin that all have
    calibrated[labels, 3, 3] = 1.0
    calibrated[30:, 7, 7] = 2.0  # of half of them something else is higher
    calibrated[:5, 7, 7] = 2.0  # and five normal images have it too
    found = evaluate(
        labels.astype(float), labels, maps=raw, masks=masks, calibrated=calibrated, map_level=0.5,
        n_draws=20,
    )  # fmt: skip
    rows = {row.name: row for row in found.table() if row.section == "lesion"}
    assert rows["normal images coloured"].value == 0.25
    assert rows["normal images coloured"].n_images == 20
    assert rows["lesions found, 10 to 29 pixels"].value == 1.0
    assert rows["highest place in the lesion, 10 to 29 pixels"].value == 0.5
    assert found.all.ranking["pixel_auroc"].value == metrics.pixel_metrics(raw, masks).auroc
    assert found.to_dict()["coloured"]["normal"]["value"] == 0.25


def test_table_is_plain_and_json_has_no_nan(study):
    scores, labels, patient, twin = study
    masks = np.zeros((200, 4, 4), dtype=bool)
    masks[labels, 1, 1] = True
    found = evaluate(
        scores, labels, groups=patient, leaked={"0.95": twin}, baselines={"same": scores},
        kind=[["glioma", "meningioma"][i % 4 // 2] if y else None for i, y in enumerate(labels)],
        maps=masks + 0.0, masks=masks, map_level=0.5, n_draws=50,
    )  # fmt: skip
    text = json.dumps(found.to_dict(), allow_nan=False)
    back = json.loads(text)
    assert back["subsets"][0]["beats_baselines"] is False
    assert back["subsets"][1]["ranking"]["auroc"]["n_units"] == found.subsets[1].n_units
    rows = found.table()
    marked = {row.name for row in rows if row.note == "does not beat same"}
    assert marked == {"auroc"}
    assert all(row.low <= row.value <= row.high for row in rows if np.isfinite(row.low))


def test_kinds_are_each_set_against_all_normals(study):
    scores, labels, _, _ = study
    kind = np.where(labels, np.where(np.arange(200) < 100, "glioma", "meningioma"), None)
    result = evaluate(scores, labels, kind=kind.tolist())
    found = result.all.by_kind
    chosen = ~labels | (kind == "glioma")
    assert found["glioma"].value == metrics.auroc(scores[chosen], labels[chosen])
    assert set(found) == {"glioma", "meningioma"}
    counted = {row.name: row.n_images for row in result.table() if row.section == "kind"}
    assert counted["glioma"] == chosen.sum() < 200, "not all images of the test"


def test_false_positives_by_group(study):
    scores, labels, patient, _ = study
    sex = ["F" if i < 100 else "M" for i in range(200)]
    age = [None if i == 1 else float(i) for i in range(200)]
    flagged = (np.arange(200) < 100) & ~labels
    found = evaluate(
        scores, labels, groups=patient, flagged=flagged, rate=0.05,
        header={"sex": sex, "age": age, "scanner": ["A"] * 200},
    )  # fmt: skip
    assert set(found.groups) == {"sex", "age"}
    assert (found.groups["sex"]["F"].value, found.groups["sex"]["M"].value) == (1.0, 0.0)
    assert found.groups["sex"]["M"].high < 0.15  # 25 patients
    assert found.group_sizes["sex"] == {"F": 50, "M": 50}
    assert len(found.groups["age"]) == 4
    assert sum(found.group_sizes["age"].values()) == 100  # image 1 is anomalous


def test_normal_images_alone_still_have_a_rate():
    flagged = np.arange(40) < 2
    found = evaluate(np.arange(40.0), np.zeros(40, bool), flagged=flagged, rate=0.05)
    assert found.all.ranking == {}
    assert found.all.deployable["false_positive_rate"].value == 0.05
    assert "sensitivity" not in found.all.deployable
    assert "40 normal and 0 anomalous images, no AUROC" in found.notes[0]


def test_too_few_units_give_a_value_without_an_interval():
    found = evaluate([0.0, 1.0, 2.0], [0, 0, 1], groups=["p"] * 3)
    one = found.all.ranking["auroc"]
    assert one.value == 1.0
    assert np.isnan(one.low)
    assert any("at least 2 independent units" in note for note in found.notes)
    assert found.to_dict()["subsets"][0]["ranking"]["auroc"]["low"] is None


def test_refusals_name_the_part(study):
    scores, labels, _, _ = study
    with pytest.raises(MetricError, match="baseline noise must have one entry per image, got 3"):
        evaluate(scores, labels, baselines={"noise": np.zeros(3)})
    with pytest.raises(MetricError, match=r"leaked 0\.95 must have one entry"):
        evaluate(scores, labels, leaked={"0.95": [True]})
    with pytest.raises(MetricError, match="got 200 normal and 0 anomalous images and no flags"):
        evaluate(scores, 0 * labels)


def test_anomalous_images_without_a_mask_are_noted(study):
    scores, labels, _, _ = study
    masks = np.zeros((200, 4, 4), dtype=bool)
    masks[np.flatnonzero(labels)[0], 0, 0] = True
    found = evaluate(scores, labels, maps=masks * 1.0, masks=masks, n_draws=20)
    assert "99 anomalous images have an empty mask; their pixels count as normal" in found.notes


# ---------------------------------------------------------------- units


def test_units_join_through_either_name():
    patients = ["a", "a", "b", "c", None, None]
    twins = [None, 7, 7, None, 9, None]
    assert independent_units(patients, twins).tolist() == [0, 0, 0, 1, 2, 3]
    assert independent_units(patients, None).tolist() == [0, 0, 1, 2, 3, 4]
    with pytest.raises(MetricError, match=r"equal length, got lengths \[1, 2\]"):
        independent_units(["a"], ["a", "b"])
    with pytest.raises(MetricError, match=r"got lengths \[\]"):
        independent_units(None)


NAMES = st.lists(st.one_of(st.none(), st.integers(0, 4)), min_size=1, max_size=25)


@given(NAMES, st.randoms())
def test_units_are_the_coarsest_that_keep_names_together(first, random):
    second = random.sample(first, len(first))
    unit = independent_units(first, second)
    for naming in (first, second):
        for name in set(naming) - {None}:
            assert len({u for u, n in zip(unit, naming, strict=True) if n == name}) == 1
    assert set(unit) == set(range(unit.max() + 1))


# ---------------------------------------------------------------- shares


def test_share_of_independent_images_is_clopper_and_pearson_s():
    from scipy.stats import binomtest

    for hits in (0, 3, 20):
        want = binomtest(hits, 20).proportion_ci(method="exact")
        found = metrics.share(np.arange(20) < hits)
        assert (found.low, found.high) == pytest.approx((want.low, want.high))


def test_share_of_patients_covers(rng):
    inside = 0
    for _ in range(400):
        level = rng.normal(size=40)
        flags = (np.repeat(level, 10) + 0.5 * rng.normal(size=400)) > 1.0
        found = metrics.share(flags, groups=np.repeat(np.arange(40), 10))
        inside += found.low <= 0.18555 <= found.high  # P(N(0, 1.25) > 1)
    assert 0.91 <= inside / 400 <= 0.985
    with pytest.raises(MetricError, match="at least one image"):
        metrics.share([])


# ---------------------------------------------------------------- trivial scores


def test_baseline_scores_show_both_directions(rng):
    train = rng.integers(0, 255, (30, 16, 16), dtype=np.uint8)
    test = rng.integers(0, 255, (12, 16, 16), dtype=np.uint8)
    files = [{"bytes": 100 + i, "size": "512x512" if i < 6 else "64x64"} for i in range(12)]
    scores = baseline_scores(train, test, file_properties=files)
    for name in ("mean_intensity", "contrast", "bytes", "size=64x64"):
        np.testing.assert_array_equal(scores[f"{name}_reversed"], -scores[name])
    assert all(s.shape == (12,) and np.isfinite(s).all() for s in scores.values())


@pytest.mark.real_data
def test_real_leak_is_what_it_is_known_to_be(real_data):
    with np.load(real_data / "brain_tumor" / "arrays_64.npz") as arrays:
        train, test, label = arrays["train"], arrays["test"], arrays["test_label"]
        twin = arrays["test_nearest_train_ncc"] > 0.95
    nearest = baseline_scores(train, test)["nearest_training"]
    found = evaluate(nearest, label, leaked={"0.95": twin}, n_draws=200)
    everything, clean, _ = found.subsets
    assert everything.ranking["auroc"].value == pytest.approx(0.864, abs=0.002)
    assert clean.ranking["auroc"].value == pytest.approx(0.331, abs=0.002)
    assert clean.n_normal == 90
