"""Selection: each rule on evidence with a known answer, and no way in for a label."""

import inspect
import json
import math
from dataclasses import fields, replace

import numpy as np
import pytest

from normalis.datasets.phantom import PhantomSettings, generate
from normalis.errors import DataError, SettingsError
from normalis.metrics import auroc
from normalis.research import selection
from normalis.research.selection import (
    RULES,
    Evidence,
    Selection,
    choose_latent_dim,
    family_auroc,
    gather_evidence,
    select_capacity,
)
from normalis.research.selection.evidence import normal_geometry
from normalis.research.selection.prior import lesion_prior

DIMS = (2.0, 4.0, 8.0, 16.0, 32.0)


def scores_with(rows, *, n=400, seed=0):
    """Scores whose shift against normals is given for each candidate."""
    rng = np.random.default_rng(seed)
    return np.exp(rng.normal(size=(len(rows), n)) + np.array(rows)[:, None])


def evidence(families, **more):
    """Evidence with the given shift of each family at each candidate."""
    return Evidence(
        candidates=tuple(f"d={d:g}" for d in DIMS),
        latent_dims=DIMS,
        validation_scores=scores_with([0] * 5, seed=99),
        synthetic_scores={
            name: scores_with(rows, seed=i) for i, (name, rows) in enumerate(families.items())
        },
        **more,
    )


OPPOSED = {"small": [0, 0.5, 1, 1.5, 2], "large": [2, 1.5, 1.2, 0.2, 0]}


# -- labels --------------------------------------------------------------------------------------


def test_no_parameter_lets_a_label_in():
    names = {f.name for f in fields(Evidence)}
    for function in (select_capacity, gather_evidence, *RULES.values()):
        names |= set(inspect.signature(function).parameters)
    for name in names:
        for word in ("label", "test", "anomalous", "mask", "target"):
            assert word not in name, name


class LinearModels:
    """PCA of several ranks: the smallest models that have a capacity."""

    def __init__(self, train, ranks):
        flat = train.reshape(len(train), -1)
        self.mean, self.ranks = flat.mean(axis=0), ranks
        self.axes = np.linalg.svd(flat - self.mean, full_matrices=False)[2]

    def __call__(self, images):
        centred = images.reshape(len(images), -1) - self.mean
        energy = (centred @ self.axes.T) ** 2
        whole = (centred**2).sum(axis=1)
        left = [whole - energy[:, :r].sum(axis=1) for r in self.ranks]
        return np.maximum(left, 0) / centred.shape[1] + 1e-9


def select_from(samples, rule):
    """Choose as an application does, from a listing that carries labels."""
    images = np.stack([image for image, _, _ in samples])
    split = np.array([s for _, s, _ in samples])
    train, held = images[split == "train"], images[split == "validation"]
    models = LinearModels(train, (1, 4, 16))
    gathered = gather_evidence(
        models,
        candidates=("d=1", "d=4", "d=16"),
        latent_dims=(1, 4, 16),
        train=train,
        validation=held,
        validation_errors=models(held).mean(axis=1),
        training_errors=models(train).mean(axis=1),
    )
    return select_capacity(gathered, rule, repeats=3).to_dict()


@pytest.fixture(scope="module")
def listing():
    images = generate(150, PhantomSettings(image_size=32, noise=0.02)).images
    images = images.reshape(150, 32, 32).clip(0, 1).astype(np.float32)
    split = ["train"] * 90 + ["validation"] * 40 + ["test"] * 20
    return [(x, s, i % 2 == 0) for i, (x, s) in enumerate(zip(images, split, strict=True))]


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_a_choice_is_the_same_when_labels_are_shuffled_or_removed(rule, listing):
    flipped = [(x, s, not label) for x, s, label in listing]
    removed = [(x, s, None) for x, s, _ in listing if s != "test"]
    chosen = select_from(listing, rule)
    assert chosen == select_from(flipped, rule) == select_from(removed, rule)
    json.dumps(chosen, allow_nan=False)


@pytest.mark.slow
def test_a_choice_does_depend_on_the_normal_images(listing):
    other = [(x if s != "validation" else x[::-1] ** 2, s, label) for x, s, label in listing]
    tables = [select_from(rows, "minimax-regret")["table"] for rows in (listing, other)]
    assert tables[0] != tables[1]


# -- rules ---------------------------------------------------------------------------------------


def test_family_auroc_is_that_of_the_metrics():
    given = evidence(OPPOSED)
    table = family_auroc(given)
    for k, scores in enumerate(given.synthetic_scores.values()):
        for c in range(5):
            both = np.concatenate([given.validation_scores[c], scores[c]])
            assert table[k, c] == pytest.approx(auroc(both, np.arange(800) >= 400))


@pytest.mark.slow
def test_minimax_regret_hedges_and_the_mean_follows_the_crowd():
    hedge = select_capacity(evidence(OPPOSED))
    assert hedge.choice == "d=8"
    assert hedge.latent_dim == 8.0
    assert max(hedge.table["worst regret"]) <= 100
    crowd = {"small": OPPOSED["small"], "small-2": OPPOSED["small"], "large": OPPOSED["large"]}
    crowd |= {"small-3": OPPOSED["small"], "small-4": OPPOSED["small"]}
    assert select_capacity(evidence(crowd)).choice == "d=8"
    assert select_capacity(evidence(crowd), "mean-auroc").choice == "d=32"


def test_a_family_that_no_candidate_detects_decides_only_where_chance_is_not_the_floor():
    given = evidence({"small": OPPOSED["small"], "unseen": [-0.1, -1, -1.5, -1.8, -2]})
    assert select_capacity(given, "minimax-regret").choice != "d=32"
    chosen = select_capacity(given, "minimax-above-chance", repeats=5)
    assert chosen.choice == "d=32"
    assert max(chosen.table["unseen"]) < 1
    assert sum(chosen.stability.values()) == pytest.approx(1)


def test_regret_is_counted_from_the_best_candidate_of_each_family():
    chosen = select_capacity(evidence(OPPOSED), repeats=0)
    table = 100 * family_auroc(evidence(OPPOSED))
    assert chosen.table["small"] == pytest.approx(tuple(table[0].max() - table[0]))
    assert min(chosen.table["large"]) == 0.0
    assert chosen.stability == {}


def test_the_report_can_be_read_and_names_the_family_that_decides():
    families = {"small": OPPOSED["small"], "large": OPPOSED["large"]}
    text = str(select_capacity(evidence(families)))
    assert "minimax-regret: d=8" in text
    assert "d=8*" in text
    assert "worst regret" in text
    assert "without 'small' the choice would be d=2" in text
    assert "resampled" in text


def test_stability_resamples_patients_and_sums_to_one():
    given = evidence(OPPOSED, groups=np.arange(400) // 4)
    chosen = select_capacity(given, repeats=20)
    assert sum(chosen.stability.values()) == pytest.approx(1.0)
    assert chosen.stability["d=8"] > 0.5
    again = select_capacity(given, repeats=20)
    assert again.stability == chosen.stability
    with pytest.raises(DataError, match="groups"):
        select_capacity(replace(given, groups=np.arange(3)))


@pytest.mark.parametrize(("rule", "choice"), [("always-16", "d=16"), ("always-8", "d=8")])
def test_always_takes_the_nearest(rule, choice):
    assert select_capacity(evidence({}), rule).choice == choice
    off_grid = Evidence(candidates=("a", "b", "c"), latent_dims=(5, 11, 23))
    assert select_capacity(off_grid, "always-8").choice == "b"
    tie = Evidence(candidates=("a", "b"), latent_dims=(32, 8))
    assert select_capacity(tie, "always-16").choice == "b"


def test_error_rules_on_a_curve_with_a_known_elbow():
    given = evidence(
        {},
        validation_errors=np.array([1.0, 0.2, 0.15, 0.12, 0.11]),
        training_errors=np.array([1.0, 0.2, 0.14, 0.05, 0.01]),
        intrinsic_dimension=14.0,
    )
    assert select_capacity(given, "elbow").choice == "d=4"
    assert select_capacity(given, "smallest-validation-error").choice == "d=32"
    assert select_capacity(given, "generalisation-gap").choice == "d=8"
    assert select_capacity(given, "intrinsic-dimension").choice == "d=16"


def test_the_lesion_scale_prior_wants_less_capacity_for_larger_lesions():
    rng = np.random.default_rng(0)
    grid = np.hypot(*np.meshgrid(np.fft.fftfreq(16), np.fft.fftfreq(16)))
    white = np.fft.fft2(rng.normal(size=(400, 16, 16)))
    smooth = np.fft.ifft2(white / (grid + 1 / 16) ** 2).real
    images = (0.5 + 0.05 * smooth / smooth.std()).clip(0, 1)
    gathered = gather_evidence(
        lambda x: np.ones((3, len(x))),
        candidates=("a", "b", "c"),
        latent_dims=(2, 16, 128),
        train=images[:300],
        validation=images[300:],
        families=["blur"],
    )
    chosen = select_capacity(gathered, "lesion-scale-prior")
    assert (
        min(chosen.table["worst regret"])
        == chosen.table["worst regret"]["abc".index(chosen.choice)]
    )
    best = [int(np.argmin(row)) for name, row in chosen.table.items() if "px" in name]
    assert len(best) == 4
    assert best == sorted(best, reverse=True)  # smaller lesions want more
    assert best[0] > best[-1]


def test_ensembles_return_a_function_of_all_scores():
    given = evidence(OPPOSED)
    for kind, reduce in (("mean", np.mean), ("max", np.max)):
        chosen = select_capacity(given, f"ensemble-{kind}")
        assert chosen.choice is None
        combined = chosen.combiner(given.validation_scores)
        log = np.log(given.validation_scores)
        standard = (log - log.mean(axis=1, keepdims=True)) / log.std(axis=1, keepdims=True)
        assert combined == pytest.approx(reduce(standard, axis=0))
        rescaled = replace(given, validation_scores=7 * given.validation_scores)
        again = select_capacity(rescaled, f"ensemble-{kind}").combiner
        assert again(7 * given.validation_scores) == pytest.approx(combined)
        with pytest.raises(DataError, match="above 0"):
            chosen.combiner(-given.validation_scores)
        assert "all candidates" in str(chosen)


def test_candidates_may_be_methods():
    given = replace(evidence(OPPOSED), candidates=("ae", "dae", "vae", "ae-u", "pca"))
    given = replace(given, latent_dims=None)
    chosen = select_capacity(given)
    assert chosen.choice == "vae"
    assert chosen.latent_dim is None
    with pytest.raises(SettingsError, match="latent_dims"):
        select_capacity(given, "always-16")


# -- what cannot be ------------------------------------------------------------------------------


def test_missing_evidence_and_unknown_rules_are_said():
    with pytest.raises(SettingsError, match="did you mean 'minimax-regret'"):
        select_capacity(evidence({}), "minimax")
    bare = Evidence(candidates=("a", "b"), latent_dims=(1, 2))
    for rule in set(RULES) - {"always-16", "always-8"}:
        with pytest.raises(SettingsError, match="needs"):
            select_capacity(bare, rule)
    with pytest.raises(SettingsError, match="NaN"):
        select_capacity(replace(bare, intrinsic_dimension=math.nan), "intrinsic-dimension")
    with pytest.raises(DataError, match="above 0"):
        select_capacity(Evidence(candidates=("a",), latent_dims=(0,)), "always-8")


def test_shapes_are_checked_at_once():
    with pytest.raises(DataError, match="distinct"):
        Evidence(candidates=("a", "a"))
    with pytest.raises(DataError, match="latent_dims"):
        Evidence(candidates=("a", "b"), latent_dims=(1,))
    with pytest.raises(DataError, match="same N"):
        Evidence(
            candidates=("a",),
            validation_scores=np.ones((1, 4)),
            synthetic_scores={"blur": np.ones((1, 5))},
        )
    with pytest.raises(DataError, match="diverged"):
        Evidence(candidates=("a",), validation_scores=np.full((1, 3), np.nan))
    negative = Evidence(candidates=("a",), validation_scores=np.full((1, 3), -1.0))
    with pytest.raises(DataError, match="above 0"):
        select_capacity(negative, "ensemble-max")


def test_all_names_are_exported():
    for name in selection.__all__:
        assert hasattr(selection, name)


# ---------------------------------------------------------------- the closed form alone


def phantom_halves(n=60):
    drawn = generate(n, PhantomSettings(image_size=32, noise=0.03, seed=0)).images
    return drawn[: n // 2], drawn[n // 2 :]


def test_the_closed_form_chooses_by_the_lesion_scale_prior_alone():
    train, held = phantom_halves()
    chosen = choose_latent_dim(train, held)
    assert chosen.candidates == ("1", "2", "4", "8", "16"), "below the number of images, 30"
    worst = chosen.table["worst regret"]
    assert chosen.choice == chosen.candidates[int(np.argmin(worst))]
    assert chosen.latent_dim == float(chosen.choice)
    again = choose_latent_dim(3 * train - 1, 3 * held - 1)
    assert again.choice == chosen.choice, "the unit of intensity must not matter"
    assert any("assumes lesions" in reason for reason in chosen.reasons)
    assert any(reason.startswith("no better than 16") for reason in chosen.reasons)


def test_the_closed_form_needs_images():
    train, held = phantom_halves()
    with pytest.raises(DataError, match="needs at least 10 normal images"):
        choose_latent_dim(train, held[:9])


def test_a_selection_survives_json():
    for rule in ("lesion-scale-prior", "ensemble-max"):
        evidence = Evidence(
            candidates=("1", "2"),
            latent_dims=(1, 2),
            validation_scores=np.random.default_rng(0).random((2, 20)) + 1,
            **normal_geometry(*phantom_halves()),
        )
        chosen = select_capacity(evidence, rule)
        again = Selection.from_dict(json.loads(json.dumps(chosen.to_dict())))
        assert str(again) == str(chosen)
        assert again.to_dict() == chosen.to_dict()


# -- grids ----------------------------------------------------------------------------------------


def test_part_of_the_candidates_is_evidence_too():
    prior = {
        "lesion of 4 px": np.linspace(0.5, 0.9, 5),
        "lesion of 32 px": np.linspace(0.9, 0.5, 5),
    }
    errors = np.array([5.0, 4.0, 3.0, 2.0, 1.0])
    whole = evidence(OPPOSED, lesion_prior=prior, validation_errors=errors)
    part = whole.only(["d=16", "d=32"])
    assert part.latent_dims == (16.0, 32.0)
    np.testing.assert_allclose(family_auroc(part), family_auroc(whole)[:, 3:])
    assert part.validation_errors.tolist() == [2.0, 1.0]
    assert select_capacity(part, "lesion-scale-prior").choice == "d=16"
    with pytest.raises(DataError, match="d=9"):
        whole.only(["d=9"])


def test_a_kept_lesion_prior_chooses_as_the_spectrum_does(listing):
    images = np.stack([image for image, _, _ in listing])
    geometry = normal_geometry(images[:90].astype(np.float64), images[90:130])
    of_spectrum = Evidence(candidates=("1", "4", "16"), latent_dims=(1, 4, 16), **geometry)
    kept = lesion_prior(
        geometry["normal"],
        geometry["normal_energies"],
        geometry["normal_outside"],
        latent_dims=(1, 4, 16),
    )
    of_prior = Evidence(candidates=("1", "4", "16"), latent_dims=(1, 4, 16), lesion_prior=kept)
    first, second = (select_capacity(e, "lesion-scale-prior") for e in (of_spectrum, of_prior))
    assert first.to_dict() == second.to_dict()
    with pytest.raises(DataError, match="lesion_prior"):
        Evidence(candidates=("1", "4"), lesion_prior=kept)
