"""Known truths of DDAD, and what learning from unlabelled images must not break."""

import json
import sys

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import roc_auc_score

from normalis import AnomalyDetector, models
from normalis.cli import main
from normalis.datasets import Dataset, Sample
from normalis.errors import DataError, RunError, SettingsError
from normalis.evaluation.of_detector import evaluate_detector
from normalis.fitted import FittedDetector
from normalis.loading.unlabelled import LEARNED_FROM
from normalis.models.ddad import Refiner, blend, draw_squares, focal_loss
from small_runs import anomalies, phantoms, read_table, write_pngs

TINY = {"hidden_dim": 8, "latent_dim": 3}


def ddad(**options):
    return models.build("ddad", **{"image_size": 32, "members": 2, **TINY, **options})


def images(n, seed=0):
    x = torch.rand(n, 1, 32, 32, generator=torch.Generator().manual_seed(seed))
    return 2 * x - 1


def detector(**options):
    own = {"members": 2, "network": "ae", "hidden_dim": 8, **options.pop("method_options", {})}
    given = {"image_size": 32, "latent_dim": 2, "epochs": 5, "batch_size": 16, "device": "cpu"}
    given |= {"method": "ddad", "calibration": "split", "method_options": own, "fpr": 0.2}
    return AnomalyDetector(**(given | options))


# ---------------------------------------------------------------- the maps


@pytest.mark.parametrize("network", ["ae-u", "ae", "memae"])
def test_equal_networks_disagree_nowhere(network):
    model = ddad(network=network, members=3, unlabelled=4).eval()
    first = model.normative[0].state_dict()
    for one in (*model.normative, *model.unknown):
        one.load_state_dict(first)
    with torch.no_grad():
        maps = model.discrepancies(images(3))
    assert (maps["intra"] == 0).all()
    assert (maps["inter"] == 0).all()
    assert (maps["rec"] > 0).any()


@pytest.mark.parametrize("network", ["ae-u", "ae"])
def test_the_maps_are_those_of_the_publication(network):
    model, x = ddad(network=network, members=3, unlabelled=4, latent_dim=5).eval(), images(3)
    with torch.no_grad():
        for one in model.unknown:  # random networks are too alike
            one.decoder.output.weight.mul_(30)
        maps = {name: value.numpy() for name, value in model.discrepancies(x).items()}
        both = [
            [n.decode_both(n.encoder(x)) if network == "ae-u" else (n(x), None) for n in kind]
            for kind in (model.normative, model.unknown)
        ]
    ours, theirs = (np.stack([x_hat.numpy() for x_hat, _ in kind]) for kind in both)
    v = np.ones(x.shape)
    if network == "ae-u":
        v = np.mean([np.exp(log_var.numpy()) for _, log_var in both[0]], axis=0)
    expected = {
        "rec": (x.numpy() - ours.mean(0)) ** 2 / v,
        "intra": np.std(ours, axis=0, ddof=1) / np.sqrt(v),
        "inter": np.abs(theirs.mean(0) - ours.mean(0)) / np.sqrt(v),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(maps[name], value.mean(1), rtol=1e-3, atol=1e-6)
        read = ddad(network=network, members=3, unlabelled=4, latent_dim=5, reading=name).eval()
        read.load_state({k: v for k, v in model.state().items() if not k.startswith("refiner")})
        with torch.no_grad():
            torch.testing.assert_close(read.anomaly_map(x), torch.from_numpy(maps[name]))


def test_without_unlabelled_images_it_refines_what_normal_networks_disagree_on():
    model = ddad().eval()
    assert len(model.unknown) == 0
    assert set(model.discrepancies(images(2))) == {"rec", "intra"}
    assert model.refiner.layers[0].in_channels == 1
    assert model.settings.networks == 2
    assert ddad(unlabelled=7).settings.networks == 4


# ---------------------------------------------------------------- the refinement


def test_squares_lie_where_they_should_and_hold_what_they_should():
    source = torch.Generator().manual_seed(0)
    drawn = draw_squares(4000, 64, source)
    top, bottom, left, right = drawn["squares"].unbind(1)
    has_one = bottom > top
    assert has_one.float().mean() == pytest.approx(0.5, abs=0.03)
    assert (right > left)[has_one].all()
    assert (right == left)[~has_one].all()
    assert min(top.min(), left.min()) >= 0
    assert max(bottom.max(), right.max()) <= 64
    inner = has_one & (top > 0) & (left > 0) & (bottom < 64) & (right < 64)
    sides = (bottom - top)[inner]
    assert torch.equal(sides, (right - left)[inner])
    assert (sides.min(), sides.max()) == (2 * 3, 2 * 13), "5 to 20 % of 64, on either side"
    centre = (top + bottom)[inner] / 2
    assert centre.min() >= 6
    assert centre.max() <= 58
    assert (drawn["partner"] != torch.arange(4000)).all()


def test_a_square_is_a_blend_with_another_image():
    x = images(3)
    squares = torch.tensor([[4, 10, 0, 5], [7, 7, 3, 9], [0, 32, 0, 32]])
    opacity, partner = torch.tensor([0.25, 0.5, 1.0]), torch.tensor([1, 2, 0])
    found, inside = blend(x, squares, partner, opacity)
    expected = x.clone()
    expected[0, :, 4:10, 0:5] = 0.75 * x[0, :, 4:10, 0:5] + 0.25 * x[1, :, 4:10, 0:5]
    expected[2] = x[0]
    torch.testing.assert_close(found, expected)
    assert inside.sum((1, 2)).tolist() == [30, 0, 32 * 32]
    assert (inside[0, 4:10, 0:5] == 1).all()


def test_focal_loss_is_that_of_its_authors():
    p, label = torch.tensor([0.9, 0.2, 0.0, 1.0]), torch.tensor([1.0, 0.0, 1.0, 1.0])
    by_hand = [0.1**2 * -np.log(0.9), 0.2**2 * -np.log(0.8), -np.log(1e-5), 0.0]
    assert focal_loss(p, label).item() == pytest.approx(np.mean(by_hand), rel=1e-3)


def test_the_refinement_learns_nothing_from_constant_maps():
    """It says the same of every place: what the focal loss says of the base rate alone."""
    torch.manual_seed(0)
    refiner, rate = Refiner(2, 8), 0.2
    optimiser = torch.optim.Adam(refiner.parameters(), 1e-2)
    label = (torch.rand(8, 16, 16) < rate).float()
    for _ in range(150):
        loss = focal_loss(refiner(torch.full((8, 2, 16, 16), 0.7)), label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        inside = refiner.eval()(torch.full((2, 2, 16, 16), 0.7))[:, 4:-4, 4:-4]
    assert inside.std() < 1e-3
    share = label.mean().item()

    def expected_loss(p):
        return share * (1 - p) ** 2 * -np.log(p) + (1 - share) * p**2 * -np.log(1 - p)

    least = minimize_scalar(expected_loss, bounds=(0.01, 0.99), method="bounded").x
    assert inside.mean().item() == pytest.approx(least, abs=0.03)


def test_measure_says_whether_maps_see_the_planted_squares(monkeypatch):
    """One that deviates inside every square sees all; one that is the same everywhere, none."""
    model = ddad(reading="asr").eval()
    flat = torch.linspace(-1, 1, 12).view(-1, 1, 1, 1).expand(-1, 1, 32, 32)

    def seeing(x):
        away = (x - x.flatten(1).median(1).values.view(-1, 1, 1, 1)).abs().mean(1)
        return {"rec": away, "intra": away}

    monkeypatch.setattr(model, "discrepancies", seeing)
    monkeypatch.setattr(Refiner, "forward", lambda _, maps: torch.zeros_like(maps[:, 0]))
    with torch.no_grad():
        found = model.measure(flat)
    assert found == {"squares that raise intra": 1.0, "squares that raise asr": 0.0}
    with torch.no_grad():
        alone = ddad(reading="intra").eval().measure(images(12))
    assert list(alone) == ["squares that raise intra"]


def test_the_refinement_trains_last_while_the_networks_stand_still():
    model = ddad(unlabelled=3).train()
    model.give_unlabelled(torch.zeros(3, 1, 32, 32, dtype=torch.uint8), normals=3)
    *networks, last = model.phases()
    assert {phase.span for phase in networks} == {(0.0, 0.8)}
    assert last.span == (0.8, 1.0)
    before = {k: v.clone() for k, v in model.state().items() if not k.startswith("refiner")}
    x = images(6)
    sum(last.losses(x, **model.draw(x, torch.Generator())).values()).backward()
    assert all(p.grad is None for phase in networks for p in phase.parameters)
    assert all(torch.equal(model.state()[k], v) for k, v in before.items()), "statistics as well"
    assert all(network.training for network in model.normative)


# ---------------------------------------------------------------- unlabelled images in training


def test_unlabelled_images_take_their_share_of_the_places_of_the_other_networks_alone():
    model = ddad(network="ae", unlabelled=30)
    model.give_unlabelled(torch.full((30, 1, 32, 32), 255, dtype=torch.uint8), normals=70)
    x = -torch.ones(500, 1, 32, 32)
    draws = model.draw(x, torch.Generator().manual_seed(0))
    seen = {}

    def noting(name):
        return lambda batch: seen.__setitem__(name, batch) or {}

    for kind in (model.normative, model.unknown):
        for one in kind:
            one.losses = lambda batch, one=one, **_: noting(id(one))(batch)
    for phase in model.phases()[:-1]:
        phase.losses(x, **draws)
    for one in model.normative:
        assert torch.equal(seen[id(one)], x)
    for one in model.unknown:
        share = (seen[id(one)].mean((1, 2, 3)) == 1).float().mean()
        assert share == pytest.approx(0.3, abs=0.06)
    model.give_unlabelled(None)
    with pytest.raises(SettingsError, match="unlabelled = 30 images were said and none are there"):
        model.draw(x, torch.Generator())


def test_the_fit_learns_from_them_and_writes_down_how_many(tmp_path):
    normal, other, new = phantoms(40), phantoms(20, seed=7), phantoms(6, seed=9)
    found = detector().fit(normal, unlabelled=other, run=tmp_path / "run").fitted_
    assert found.info["data"]["unlabelled"]["images"] == 20
    assert found.params["method_options"]["unlabelled"] == 20
    assert found.models[0].settings.networks == 4
    assert found.models[0]._given is None, "no picture of them is kept"
    without = detector().fit(normal).fitted_
    assert "unlabelled" not in without.info["data"]
    again = FittedDetector.load(tmp_path / "run")
    np.testing.assert_array_equal(again.anomaly_score(new), found.anomaly_score(new))
    same = detector().fit(normal, unlabelled=other, run=tmp_path / "run").fitted_
    assert same.identity == found.identity, "answered from what is there"
    with pytest.raises(RunError, match="holds a finished run"):
        detector().fit(normal, unlabelled=other[:10], run=tmp_path / "run")
    with pytest.raises(SettingsError, match="unlabelled = 20 images were said"):
        AnomalyDetector.load(tmp_path / "run").fit(normal)
    with pytest.raises(DataError, match="was trained on 20 of these 20 images"):
        found.calibrate(other)


def test_a_killed_fit_goes_on_with_the_same_unlabelled_images_only(tmp_path, monkeypatch):
    normal, other = phantoms(40), phantoms(20, seed=7)
    monkeypatch.setattr("normalis.training.checkpoints.EVERY_S", 0.0)

    def stop(step):
        if step.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        detector().fit(normal, unlabelled=other, run=tmp_path, progress=stop)
    with pytest.raises(RunError, match="other settings or other data"):
        detector().fit(normal, unlabelled=phantoms(20, seed=8), run=tmp_path)
    resumed = detector().fit(normal, unlabelled=other, run=tmp_path).fitted_
    whole = detector().fit(normal, unlabelled=other).fitted_
    x = phantoms(4, seed=9)
    np.testing.assert_array_equal(resumed.anomaly_score(x), whole.anomaly_score(x))


def test_unlabelled_normals_leave_normals_as_they_are():
    """The null test: nothing to find, so that new normal images rank as those held out do."""
    options = {"epochs": 12, "calibration_share": 0.5, "method_options": {"reading": "inter"}}
    fitted = detector(**options).fit(phantoms(120), unlabelled=phantoms(60, seed=7)).fitted_
    new, held = fitted.anomaly_score(phantoms(80, seed=9)), fitted.normal_scores
    label = np.repeat([1, 0], [len(new), len(held)])
    auroc = roc_auc_score(label, np.concatenate([new, held]))
    spread = np.sqrt((len(new) + len(held) + 1) / (12 * len(new) * len(held)))
    assert abs(auroc - 0.5) < 3 * spread
    assert fitted.p_value(phantoms(80, seed=9)).mean() == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "ae", "method_options": None}, "ae learns from normal images alone.*or choose"),
        ({"method": "panel", "method_options": None}, "panel learns from normal images alone"),
    ],
)
def test_methods_that_have_no_use_for_them_say_so(options, message):
    with pytest.raises(SettingsError, match=message):
        AnomalyDetector(**options).fit(phantoms(10), unlabelled=phantoms(5, seed=1))


def test_inter_needs_them():
    with pytest.raises(SettingsError, match="reading inter compares with unlabelled images"):
        detector(method_options={"reading": "inter"}).fit(phantoms(20))


# ---------------------------------------------------------------- what they must not be


def table(folder, **splits):
    """Return a data set of images written to a folder: name -> (images, split, patients)."""
    samples = []
    for name, (pictures, split, patients) in splits.items():
        for path, patient in zip(write_pngs(folder / name, pictures), patients, strict=True):
            anomalous = None if split == "unlabelled" else name == "sick"
            samples.append(
                Sample(path=path, split=split, is_anomalous=anomalous, patient_id=patient)
            )
    return Dataset(name="table", root=folder, layout="test", samples=tuple(samples))


def people(first, n):
    return [f"patient {first + i}" for i in range(n)]


@pytest.fixture
def data(tmp_path):
    return table(
        tmp_path / "data",
        normal=(phantoms(30), "train", people(0, 30)),
        well=(phantoms(8, seed=3), "test", people(100, 8)),
        sick=(anomalies(8), "test", people(200, 8)),
    )


def shifted(pictures, by):
    """Return near copies: brighter, with a little noise."""
    noise = np.random.default_rng(0).integers(0, 2, pictures.shape)
    return np.clip(pictures.astype(int) + by + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("pictures", "patients", "message"),
    [
        (phantoms(30)[:2], [None, None], "2 among the normal images .*001.png = 001.png"),
        (shifted(phantoms(30)[:1], 3), [None], "1 among the normal images"),
        (phantoms(1, seed=50), ["patient 7"], "1 among the normal images .patient 7"),
        (anomalies(8)[3:4], [None], "1 among the test images"),
        (phantoms(1, seed=50), ["patient 203"], "1 among the test images .patient 203"),
    ],
)
def test_images_that_are_known_are_refused_or_left_out(data, tmp_path, pictures, patients, message):
    new = phantoms(10, seed=40)
    more = np.concatenate([pictures, new])
    other = table(tmp_path / "more", more=(more, "unlabelled", [*patients, *people(300, len(new))]))
    with pytest.raises(DataError, match=message):
        detector().fit(data, unlabelled=other)
    found = detector(epochs=5).fit(data, unlabelled=other, unlabelled_overlap="leave-out")
    said = found.info_["data"]["unlabelled"]
    assert (said["images"], said["left_out"]) == (10, len(pictures))
    with pytest.raises(SettingsError, match="unlabelled_overlap must be one of refuse, leave-out"):
        detector().fit(data, unlabelled=other, unlabelled_overlap="allow")


def test_nothing_is_left_of_images_that_are_all_known(data):
    with pytest.raises(DataError, match="no unlabelled image is left"):
        detector().fit(data, unlabelled=phantoms(30)[:4], unlabelled_overlap="leave-out")


def test_an_evaluation_names_test_images_that_were_learned_from(data):
    fitted = detector(epochs=5).fit(phantoms(30), unlabelled=anomalies(8)[:3])
    result, _, _ = evaluate_detector(fitted, data)
    (note,) = [n for n in result.notes if "learned from" in n]
    assert note.startswith("3 of 16 test images were among the unlabelled ones")
    assert "000.png" in note
    counts = {s.name: (s.n_normal, s.n_anomalous) for s in result.subsets}
    assert counts["without unlabelled"] == (8, 5)
    clean, _, _ = evaluate_detector(detector(epochs=5).fit(phantoms(30)), data)
    assert not any("unlabelled" in s.name for s in clean.subsets)


def test_the_commands_fit_with_unlabelled_images_and_name_those_that_are_scored(
    tmp_path, monkeypatch, capsys
):
    write_pngs(tmp_path / "normal", phantoms(30))
    write_pngs(tmp_path / "other", phantoms(12, seed=7))
    write_pngs(tmp_path / "new", np.concatenate([phantoms(4, seed=9), phantoms(12, seed=7)[5:7]]))

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["normalis", *map(str, arguments)])
        try:
            main()
        except SystemExit as stop:
            if stop.code:
                raise AssertionError(capsys.readouterr().err) from stop
        return capsys.readouterr()

    options = ["--option", "members=2", "--option", "network=ae", "--option", "hidden_dim=8"]
    given = ["--method", "ddad", "--image-size", 32, "--latent-dim", 2, "--epochs", 5, *options]
    run, out = tmp_path / "run", tmp_path / "out"
    unlabelled = ["--unlabelled", tmp_path / "other"]
    said = call("fit", tmp_path / "normal", "--out", run, *given, *unlabelled).out
    assert "learned from 12 unlabelled images as well" in said
    said = call("score", run, tmp_path / "new", "--out", out, "--no-overlays")
    rows = read_table(out / "scores.csv")
    marked = {row["path"].rpartition("/")[2] for row in rows if row[LEARNED_FROM] == "1"}
    assert marked == {"004.png", "005.png"}
    sentence = "2 of 6 images were among the unlabelled ones"
    assert sentence in " ".join(said.err.split())
    stored = json.loads((out / "score.json").read_text())["drift"]
    assert any(sentence in line for line in stored)
