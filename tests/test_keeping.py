"""Which epoch's model is kept: the rule, and the training that follows it."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from normalis import AnomalyDetector, models
from normalis.errors import DataError, SettingsError
from normalis.models.inputs import to_model_input
from normalis.training.keeping import (
    LOOKS,
    Best,
    is_looked_at,
    pseudo_anomalies,
    pseudo_auroc,
    watched,
)
from normalis.training.loop import Training
from normalis.training.settings import TrainingSettings
from small_runs import detector, phantoms


def normal(n=8, size=64, seed=0):
    return to_model_input(torch.from_numpy(phantoms(n, size=size, seed=seed))[:, None])


# --- the rule ---


def test_each_image_has_one_change_on_its_foreground():
    x = normal()
    odd = pseudo_anomalies(x)
    changed = (odd - x).abs() > 0.02
    assert odd.min() >= -1
    assert odd.max() <= 1
    assert changed.flatten(1).any(1).all()
    assert changed.float().flatten(1).mean(1).max() < 0.35, "a part of the image"
    background = x == x.amin((2, 3), keepdim=True)
    assert background.float().mean() > 0.1
    assert torch.equal(odd[background], x[background])
    assert torch.equal(pseudo_anomalies(x), odd), "the same in every call"
    kinds = [(odd - x)[i::4].abs().mean() for i in range(4)]
    assert len({round(float(k), 6) for k in kinds}) == 4


def test_changes_of_colour_and_of_small_and_flat_images_are_finite():
    for x in (normal(3, size=16).expand(-1, 3, -1, -1), torch.full((2, 1, 16, 16), -1.0)):
        assert torch.isfinite(pseudo_anomalies(x)).all()


def test_the_value_is_the_auroc_of_scikit_learn():
    class Mean(torch.nn.Module):
        def anomaly_score(self, x):
            return (10 * x.mean((1, 2, 3))).round()  # with ties

    low, high = torch.rand(30, 1, 4, 4), torch.rand(20, 1, 4, 4) + 0.1
    model = Mean()
    scores = torch.cat([model.anomaly_score(low), model.anomaly_score(high)])
    expected = roc_auc_score(np.arange(50) >= 30, scores)
    assert pseudo_auroc(model, low, high, batch_size=7) == pytest.approx(expected)
    assert pseudo_auroc(model, low * torch.nan, high, batch_size=7) == 0.0


@pytest.mark.parametrize("epochs", [1, 7, 83, 250])
@pytest.mark.parametrize("begins", [0.0, 0.6])
def test_looks_are_few_and_the_last_epoch_is_always_one(epochs, begins):
    looks = [e for e in range(1, epochs + 1) if is_looked_at(e, epochs, begins)]
    assert looks[-1] == epochs
    assert len(looks) <= 2 * LOOKS
    assert all(e / epochs > begins for e in looks)


def test_the_better_and_of_equal_ones_the_later_is_kept():
    best = Best()
    for epoch, value in enumerate([0.5, 0.8, 0.7, 0.8, float("nan")], start=1):
        best.offer(value, epoch, {"w": torch.tensor(float(epoch))})
    assert (best.value, best.epoch, best.state["w"].item()) == (0.8, 4, 4.0)


def test_images_that_are_looked_at_are_evenly_spread():
    assert watched(torch.arange(100)).tolist() == list(range(100))
    some = watched(torch.arange(1000))
    assert len(some) <= 256
    assert some.diff().unique().tolist() == [4]


# --- the training ---


def training(epochs, *, keep="best", method="ae", held=12, **options):
    small = {"image_size": 32, "latent_dim": 2, "hidden_dim": 8, **options}
    model = models.build(method, **small)
    settings = TrainingSettings(
        epochs=epochs, batch_size=8, precision="float32", keep_epoch=keep, learning_rate=5e-3
    )
    images = torch.from_numpy(phantoms(24 + held, size=32))[:, None]
    return Training(
        [model], images[held:], settings=settings, seeds=[0], device="cpu", held=images[:held]
    )


def test_the_model_of_the_best_epoch_is_kept():
    run = training(6)
    run.run()
    (member,) = run.members
    values = [epoch["pseudo auroc"] for epoch in run.history]
    best = max(range(6), key=lambda e: (values[e], e)) + 1
    assert member.best.epoch == best
    alone = training(best, keep="last")  # the paper's recipe: the same steps up to there
    alone.run()
    kept, expected = member.model.state_dict(), alone.members[0].model.state_dict()
    assert all(torch.equal(kept[k], expected[k]) for k in kept)
    assert "pseudo auroc" not in alone.history[0]


def test_an_interrupted_training_keeps_the_same_model():
    whole = training(6)
    whole.run()
    for stop in (2, 5):
        first = training(6)

        def interrupt(step, stop=stop):
            if step.epoch == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            first.run(interrupt)
        state = {k: v.clone() for k, v in first.state().items()}
        again = training(6)
        again.resume(state, json.loads(json.dumps(first.progress())))
        again.run()
        assert again.history == whole.history
        kept, expected = (r.members[0].model.state_dict() for r in (again, whole))
        assert all(torch.equal(kept[k], expected[k]) for k in expected)
        assert again.members[0].best.epoch == whole.members[0].best.epoch


def test_the_last_epoch_is_looked_at_for_nothing():
    run = training(2, keep="last")
    run.run()
    assert "pseudo auroc" not in run.history[-1]
    assert not any(".best." in k for k in run.state())
    assert "best" not in run.progress()


def test_a_method_in_stages_is_looked_at_once_its_last_one_has_begun():
    run = training(4, method="morphaeus", latent_dim=4, width=4, deform_from=0.5)
    run.run()
    assert ["pseudo auroc" in epoch for epoch in run.history] == [False, False, True, True]


def test_stacked_trainings_keep_what_each_alone_would():
    several = training(3)
    twin = training(3)
    pair = Training(
        [several.members[0].model, models.build("ae", image_size=32, latent_dim=2, hidden_dim=8,
                                                seed=1)],
        twin.pixels, settings=twin.settings, seeds=[0, 1], device="cpu", held=twin.held,
        stacked=True,
    )  # fmt: skip
    pair.run()
    twin.run()
    both, alone = ([e["pseudo auroc"] for e in m.history] for m in
                   (pair.members[0], twin.members[0]))  # fmt: skip
    assert both == pytest.approx(alone, abs=0.05)


# --- what users meet ---


def test_a_detector_keeps_its_best_epoch_and_says_so_in_its_history(tmp_path):
    found = detector(method="memae", epochs=3, keep_epoch="best", calibration="split")
    fitted = found.fit(phantoms(60)).fitted_
    assert all(0 <= epoch["pseudo auroc"] <= 1 for epoch in fitted.history)
    fitted.save(tmp_path / "run")
    loaded = AnomalyDetector.load(tmp_path / "run")
    assert loaded.keep_epoch == "best"
    x = phantoms(3, seed=5)
    assert np.array_equal(loaded.anomaly_score(x), fitted.anomaly_score(x))


def test_what_cannot_be_looked_at_is_refused():
    with pytest.raises(SettingsError, match="a panel keeps the last epoch"):
        AnomalyDetector(keep_epoch="best").fit(phantoms(30))
    with pytest.raises(SettingsError, match="keep_epoch must be one of last, best, got 'first'"):
        detector(keep_epoch="first").fit(phantoms(30))
    with pytest.raises(DataError, match="watches held-out normal images needs at least 2, got 0"):
        detector(keep_epoch="best", calibration="none").fit(phantoms(30))
