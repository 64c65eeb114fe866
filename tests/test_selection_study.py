"""The study of selection rules: labels reach no choice, regret on a worked example, end to end."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from normalis import models, scorers
from normalis.research.data import Store
from normalis.research.experiments import plan
from normalis.research.selection import RULES
from normalis.research.sweep import run_plan

sys.path.insert(0, str(Path(__file__).parents[1] / "studies"))
study = importlib.import_module("selection_study")
evidence = importlib.import_module("selection_evidence")
seeds = importlib.import_module("seeds")
many_seeds = importlib.import_module("many_seeds")

DIMS = (2.0, 8.0, 16.0, 32.0)


def made(*, seeds=(0, 1), images=60, rng_seed=0):
    """Evidence and outcomes in which capacity 8 separates real anomalies best."""
    rng = np.random.default_rng(rng_seed)
    normals, outcomes = [], []
    labels = np.arange(images) % 2 == 1
    for seed in seeds:
        for i, d in enumerate(DIMS):
            head = {
                "identity": f"{seed}-{d}",
                "dataset": "made",
                "method": "ae",
                "capacity": d,
                "standardize": False,
                "seed": seed,
                "epochs": 83,
            }
            normals.append(
                head
                | {
                    "validation_scores": np.exp(rng.normal(size=40)).tolist(),
                    "synthetic": {
                        "small": np.exp(rng.normal(size=40) + i).tolist(),
                        "large": np.exp(rng.normal(size=40) + 3 - i).tolist(),
                    },
                    "groups": list(range(40)),
                    "validation_error": 1.0 / d,
                    "training_error": 0.5 / d,
                    "intrinsic_dimension": 7.0,
                    "lesion_prior": {"lesion of 4 px": 0.5 + 0.1 * i, "large": 0.9 - 0.1 * i},
                }
            )
            shift = 3.0 if d == 8 else 0.3
            outcomes.append(
                head
                | {
                    "scores": np.exp(rng.normal(size=images) + shift * labels).tolist(),
                    "is_anomalous": labels.tolist(),
                    "groups": (np.arange(images) // 2).tolist(),
                    "pixel_average_precision": d / 100,
                }
            )
    return normals, outcomes


def choices(normals, outcomes):
    (setting,) = study.settings_of(normals, outcomes, study.WHOLE)
    return {rule: [s.to_dict() for s in chosen] for rule, chosen in study.choose(setting).items()}


# -- labels ---------------------------------------------------------------------------------------


def test_no_choice_changes_when_labels_are_shuffled_or_removed():
    normals, outcomes = made()
    chosen = choices(normals, outcomes)
    assert set(chosen) == set(RULES)
    shuffled = [o | {"is_anomalous": o["is_anomalous"][::-1]} for o in outcomes]
    removed = [
        {k: v for k, v in o.items() if k not in ("is_anomalous", "scores")} for o in outcomes
    ]
    assert choices(normals, shuffled) == chosen
    assert choices(normals, removed) == chosen


def test_regret_does_change_with_the_labels():
    normals, outcomes = made()
    flipped = [o | {"is_anomalous": [not a for a in o["is_anomalous"]]} for o in outcomes]
    key = (study.WHOLE, "made")
    first, other = (study.study(normals, o, repeats=5)[key][1] for o in (outcomes, flipped))
    assert first["always-16"].regret[0] > 10 > other["always-16"].regret[0]


# -- regret ---------------------------------------------------------------------------------------


def test_regret_of_a_worked_example():
    # Two candidates, two seeds. Candidate 0 ranks all right (AUROC 1) in both seeds, candidate 1
    # ranks all wrong in seed 0 (AUROC 0) and ties everything in seed 1 (AUROC 0.5).
    labels = np.array([False, True] * 4)
    groups = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    right = labels.astype(float)
    scores = np.array([[right, 1 - right], [right, np.ones(8)]])
    always_0, always_1 = scores[:, :1], scores[:, 1:]
    found = study.cross_fitted(
        scores, np.concatenate([always_0, always_1], axis=1), labels, groups, repeats=20
    )
    assert found[0] == (0.0, 0.0, 0.0)
    assert found[1] == pytest.approx((75.0, 75.0, 75.0))  # (100 + 50) / 2 points


def test_the_best_is_named_on_other_images_and_so_may_lose():
    # One seed; candidate 0 is right on patients 0-1 and wrong on 2-3, candidate 1 the reverse. In
    # each halving into these, the best of one half is the worst of the other: regret -100 or +100.
    labels = np.array([False, True] * 4)
    first = np.where(np.arange(8) < 4, labels, ~labels).astype(float)
    scores = np.array([[first, 1 - first]])
    halves = [np.arange(4), np.arange(4, 8)]
    found = [study.aurocs(scores[..., h], labels[h]) for h in halves]
    both = [np.concatenate([f, f], axis=1) for f in found]
    np.testing.assert_allclose(study._regret(both, 2), [-0.5, -0.5])


def test_auroc_of_many_rows_is_that_of_the_metrics():
    from normalis.metrics import auroc

    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 5, (3, 50)).astype(float), rng.random(50) < 0.4
    expected = [auroc(row, labels) for row in scores]
    np.testing.assert_allclose(study.aurocs(scores, labels), expected)


def test_differences_are_from_the_baseline():
    normals, outcomes = made()
    fared = study.study(normals, outcomes, repeats=20)[study.WHOLE, "made"][1]
    assert fared["always-16"].over_first == (0.0, 0.0, 0.0)
    assert fared["always-16"].choices == ("16", "16")
    assert fared["always-8"].over_first[1] > 0
    assert fared["always-8"].pixel_ap_over_first == pytest.approx(-8.0)
    assert fared["ensemble-mean"].choices == ("all", "all")


# -- what is there --------------------------------------------------------------------------------


def test_seeds_and_candidates_that_are_not_there_are_left_out():
    normals, outcomes = made(seeds=(0, 1, 2))
    some = [n for n in normals if n["seed"] == 0 or (n["seed"] == 1 and n["capacity"] != 32)]
    some += [n for n in normals if n["seed"] == 2 and n["capacity"] == 2]
    (setting,) = study.settings_of(some, outcomes, study.WHOLE)
    assert (setting.seeds, setting.candidates) == ((0, 1), ("2", "8", "16"))
    assert study.settings_of(some[:2], outcomes, study.WHOLE) == []
    assert len(page_of(some, outcomes, repeats=3)) > 10
    assert "0 of" in page_of([], [])[0]


def test_of_two_trainings_that_differ_in_length_the_shorter_counts():
    normals, outcomes = made(seeds=(0,))
    longer = [
        [row | {"identity": f"long {row['identity']}", "epochs": 99} for row in side]
        for side in (normals, outcomes)
    ]
    for order in (1, -1):
        mine, told = ([*a, *b][::order] for a, b in zip((normals, outcomes), longer, strict=True))
        (setting,) = study.settings_of(mine, told, study.WHOLE)
        assert {row["epochs"] for row in setting.normals[0]} == {83}


@pytest.mark.slow
def test_from_trainings_to_the_page(tmp_path):
    study.write_phantoms(tmp_path / "data", size=16, train=40, test=12)
    table = {
        "datasets": ["phantom_focal", "phantom_diffuse"],
        "latent_dims": [1, 2, 8],
        "epochs": 2,
        "options": {"hidden_dim": 8},
        "images": {"image_size": 16},
        "subset": {"validation_share": 0.4},
        "include": [
            {"methods": ["rate-ae"], "latent_dims": [16], "options": {"rate": r, "hidden_dim": 8}}
            for r in (4.0, 8.0, 16.0)
        ],
    }
    results, kept = tmp_path / "results", tmp_path / "evidence"
    experiments = plan(table, Store(results, tmp_path / "data").fingerprints)
    assert run_plan(experiments, results, jobs=1, device="cpu") == {}
    assert evidence.gather(results, kept, None) == []
    normals, outcomes = evidence.read(kept / "normals"), evidence.read(kept / "outcomes")
    # 12 trainings, each read natively and by median; those of rates with noise, too.
    assert len(normals) == len(outcomes) == 2 * 12 + 6
    assert not any({"is_anomalous", "scores"} & set(row) for row in normals)
    kept_priors = {row["method"]: row["lesion_prior"] for row in normals}
    assert len(kept_priors["ae"]) == 4
    assert kept_priors["rate-ae"] is None
    text = "\n".join(page_of(normals, outcomes, repeats=5))
    rates = "rate 4-64 of training (2)"
    for expected in ("phantom_focal, d 1-128", "*Phantoms*", rates, "| minimax-regret |"):
        assert expected in text
    # The two sets share their normal images, so a rule must choose the same on both.
    both = [choices_of(normals, outcomes, name) for name in ("phantom_focal", "phantom_diffuse")]
    assert both[0] == both[1]
    # 24 training images are too few for an intrinsic dimension, which the rule then refuses.
    assert set(both[0]) == set(RULES) - {"intrinsic-dimension"}
    assert evidence.gather(results, kept, None) == []
    assert sum(f.stat().st_size for f in kept.rglob("*.parquet")) < 500_000


def test_methods_are_candidates_in_either_reading_and_without_a_capacity():
    normals, outcomes = made()
    for side in (normals, outcomes):
        for row in side:
            kind = {2.0: ("ae", "native"), 8.0: (study.USUAL, "median"), 16.0: ("ae", "median")}
            row["method"], row["reading"] = kind.get(row["capacity"], ("other", "native"))
            row["capacity"] = 16.0
    (setting,) = study.settings_of(normals, outcomes, "methods")
    assert setting.candidates == ("ae", "ae, median", study.DEFAULT)
    fared = study.fare(setting, study.choose(setting), repeats=5)
    # Rules that need capacities or errors in common are left out; the baselines stand for them.
    assert {"minimax-regret", "ensemble-mean", study.DEFAULT, "ae"} <= set(fared)
    assert not {"always-16", "elbow", "lesion-scale-prior"} & set(fared)
    assert fared[study.DEFAULT].over_first == (0.0, 0.0, 0.0)
    assert fared["ae"].choices == ("ae", "ae")


def test_real_images_are_drawn_and_phantoms_are_not(tmp_path):
    found = study.study(*made(), repeats=3)
    study.draw(found, tmp_path)
    for name in ("selection_curves.png", "selection_regret.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 900
        (tmp_path / name).unlink()
    study.draw({(grid, f"phantom_{name}"): f for (grid, name), f in found.items()}, tmp_path)
    assert not list(tmp_path.iterdir())


def page_of(normals, outcomes, repeats=1):
    found = study.study(normals, outcomes, repeats=repeats)
    return study.page(found, study.missing(normals))


def choices_of(normals, outcomes, dataset):
    (setting,) = (s for s in study.settings_of(normals, outcomes, study.WHOLE) if s.name == dataset)
    return {rule: [s.choice for s in chosen] for rule, chosen in study.choose(setting).items()}


def test_packed_evidence_reads_as_the_files_did(tmp_path):
    row = {
        "identity": "a", "capacity": 8.0, "validation_scores": [1 / 3, 0.5],
        "synthetic": {"blur": [0.1, 0.2]}, "lesion_prior": {"lesion of 4 px": 0.25},
    }  # fmt: skip
    other = {"identity": "b", "capacity": 2.0, "validation_scores": [0.25]}
    for side in evidence.SIDES:
        for one in (row, other):
            file = tmp_path / side / f"{one['identity']}.parquet"
            file.parent.mkdir(exist_ok=True)
            pq.write_table(pa.Table.from_pylist([one]), file)
    evidence.pack(tmp_path, tmp_path / "packed")
    first, second = evidence.read(tmp_path / "packed" / "normals")
    assert first["lesion_prior"] == row["lesion_prior"]
    np.testing.assert_allclose(first["synthetic"]["blur"], [0.1, 0.2], rtol=1e-3)
    np.testing.assert_allclose(first["validation_scores"], [1 / 3, 0.5], rtol=1e-3)
    assert second["validation_scores"] == [0.25]
    assert "synthetic" not in second


def test_the_page_has_the_fits_that_are_recorded():
    rows = seeds.read(seeds.ROOT / "results" / "seeds.csv")
    assert {row["options"] for row in rows} == set(seeds.TRIED)
    assert seeds.table(rows) in seeds.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("part", many_seeds.PARTS)
def test_the_page_has_what_more_seeds_said(part):
    rows = many_seeds.read(many_seeds.ROOT / "results" / "many_seeds" / f"{part}.csv")
    assert {row["dataset"] for row in rows} == set(many_seeds.SETS)
    assert tuple(rows[0]) == many_seeds.COLUMNS[part]
    assert many_seeds.TABLES[part](rows) in many_seeds.PAGE.read_text(encoding="utf-8")


def test_networks_together_are_joined_as_the_method_joins_them():
    one = [models.build("ae-u", seed=s, latent_dim=2, hidden_dim=8) for s in (0, 1)]
    both = models.build("ae-u", latent_dim=2, hidden_dim=8, members=2)
    for network, member in zip(one, both.members, strict=True):
        member.load_state_dict(network.state_dict(), strict=False)
    x = torch.rand(3, 1, 64, 64) * 2 - 1
    found = dict(many_seeds.together([m.eval() for m in one], x))
    expected = scorers.build("median").anomaly_score(both.eval(), x)
    torch.testing.assert_close(found["maps"], expected.detach())
    assert [how for how, _ in many_seeds.together(one[:1], x)] == ["maps"]
    assert len(found) == 4


def test_a_table_of_fits_has_their_mean_and_their_extremes():
    fit = {"dataset": "heads", "options": "", "auroc_part": "0.5", "native": "0.5", "pixel_ap": ""}
    found = seeds.table([{**fit, "auroc": a, "jumps": j} for a, j in (("0.7", "1"), ("0.8", "4"))])
    *_, line = found.splitlines()
    assert "| heads | the authors' loss | 2 | 75.0 (70.0 to 80.0) | 50.0 (50.0 to 50.0)" in line
    assert line.endswith("|  | 2.5 |")
