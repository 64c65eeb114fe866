"""The commands fingerprint and explain, through the command line."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from normalis import AnomalyDetector
from normalis.cli import app
from normalis.datasets.phantom import PhantomSettings, generate
from normalis.entropy import fingerprint
from normalis.entropy.picture import draw_fingerprint
from normalis.errors import DataError, SettingsError


@pytest.fixture(scope="module")
def head_slices():
    drawn = generate(60, PhantomSettings(image_size=32, noise=0.03, seed=0))
    return (255 * np.clip(drawn.images, 0, 1)).astype(np.uint8)


@pytest.fixture
def data(tmp_path, head_slices):
    """A folder with 60 normal training images, and anomalous test images of another size."""
    for i, image in enumerate(head_slices):
        for folder, shown in (("train/good", image), ("test/bad", 255 - image)):
            path = tmp_path / "data" / folder / f"{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(shown).save(path)
    return tmp_path / "data"


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def test_fingerprint_reads_normal_training_images_only(data, head_slices, tmp_path):
    file = tmp_path / "out" / "found.json"
    done = run("research", "fingerprint", data, "--image-size", 32, "--out", file)
    assert done.exit_code == 0, done.output
    found = json.loads(file.read_text())
    assert found["images"] == 60, "the 60 anomalous test images are not looked at"
    expected = fingerprint(head_slices)
    assert found["eigenvalues"] == pytest.approx(expected.eigenvalues, rel=1e-4)
    assert f"{expected.components['90%']}" in done.output
    for said in ("Rate R(D)", "TwoNN", "effective rank", "do not name a capacity"):
        assert said in done.output
    for note in found["notes"]:
        assert note[:40] in done.output
    with Image.open(file.with_suffix(".png")) as picture:
        assert picture.size == (1100, 340)
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20, "something is drawn"


def test_fingerprint_needs_no_file(data):
    done = run("research", "fingerprint", data, "--image-size", 32)
    assert done.exit_code == 0
    assert "numbers:" not in done.output


def test_the_figure_shows_the_measured_numbers(head_slices):
    found = fingerprint(head_slices)
    rate, spectrum, lesions = draw_fingerprint(found).axes
    np.testing.assert_allclose(rate.lines[1].get_ydata(), found.rate_heldout)
    positive = [v for v in found.eigenvalues if v > 0]
    np.testing.assert_allclose(spectrum.lines[0].get_ydata(), positive)
    assert list(lesions.lines[0].get_ydata()) == [r["best_rank"] for r in found.lesion_ranks]


TINY = ("--image-size", 32, "--epochs", 1, "--option", "hidden_dim=8", "--device", "cpu")


@pytest.mark.parametrize(
    ("words", "rule", "reason"),
    [
        ([], "always-16", "what hedged best"),
        (["--latent-dim", "closed-form"], "lesion-scale-prior", "no better than 16"),
    ],
)
def test_explain_says_why_and_what_it_rests_on(data, tmp_path, words, rule, reason):
    done = run("fit", data, "--out", tmp_path / "run", *words, *TINY)
    assert done.exit_code == 0, done.output
    assert f"by the rule {rule}" in " ".join(done.output.split())
    detector = AnomalyDetector.load(tmp_path / "run")
    selection = detector.info_["selection"]
    assert detector.latent_dim == (words or ["auto"])[-1]
    assert detector.latent_dim_ == selection["latent_dim"] == detector.model_.settings.latent_dim
    if not words:
        assert detector.latent_dim_ == 16
    said = run("research", "explain", tmp_path / "run").output
    assert f"latent dimension {detector.latent_dim_}, without any label, by the rule {rule}" in said
    for part in ("lesion of 4 px", "assumes lesions", reason):
        assert part in said


def test_both_rules_state_the_same_losses(head_slices):
    made = {"image_size": 32, "epochs": 1, "method_options": {"hidden_dim": 8}, "device": "cpu"}
    usual, formula = (
        AnomalyDetector(latent_dim=rule, **made).fit(head_slices).info_["selection"]
        for rule in ("auto", "closed-form")
    )
    assert usual["table"] == formula["table"]
    assert usual["candidates"] == formula["candidates"]
    worst = dict(zip(formula["candidates"], formula["table"]["worst regret"], strict=True))
    assert worst[formula["choice"]] == min(worst.values())


def test_too_few_patients_for_the_table_are_no_error(head_slices):
    made = {"image_size": 32, "epochs": 1, "method_options": {"hidden_dim": 8}, "device": "cpu"}
    two = [f"p{i % 2}" for i in range(len(head_slices))]
    fitted = AnomalyDetector(calibration="none", **made).fit(head_slices, patient_ids=two)
    assert fitted.latent_dim_ == 16
    assert fitted.info_["selection"]["table"] == {}
    with pytest.raises(DataError, match="needs at least 10 normal images"):
        AnomalyDetector(calibration="none", latent_dim="closed-form", **made).fit(
            head_slices, patient_ids=two
        )


def test_explain_says_what_else_limits_a_method(data, tmp_path):
    for method, said in (("nested-ae", "128: the width that nested-ae has"), ("knn", "no latent")):
        done = run("fit", data, "--out", tmp_path / method, "--method", method, *TINY[:4])
        assert done.exit_code == 0, done.output
        assert said in run("research", "explain", tmp_path / method).output


def test_explain_says_that_a_given_number_was_not_chosen(data, tmp_path):
    assert run("fit", data, "--out", tmp_path / "run", "--latent-dim", 2, *TINY).exit_code == 0
    said = run("research", "explain", tmp_path / "run").output
    assert "latent dimension 2: it was given" in said


def test_a_chosen_number_gives_the_model_of_that_number(head_slices):
    tiny = {"image_size": 32, "epochs": 1, "method_options": {"hidden_dim": 8}, "device": "cpu"}
    auto = AnomalyDetector(latent_dim="closed-form", **tiny).fit(head_slices)
    fixed = AnomalyDetector(latent_dim=auto.latent_dim_, **tiny).fit(head_slices)
    np.testing.assert_array_equal(auto.anomaly_score(head_slices), fixed.anomaly_score(head_slices))
    assert "selection" not in fixed.info_
    refitted = auto.set_params(latent_dim=3).fit(head_slices)
    assert refitted.latent_dim_ == 3, "an earlier choice must not stick"


@pytest.mark.parametrize("wrong", ["automatic", "1.5", 1.5])
def test_latent_dim_is_a_number_or_a_rule(head_slices, wrong):
    with pytest.raises(SettingsError, match="latent_dim must be a whole number"):
        AnomalyDetector(latent_dim=wrong).fit(head_slices)


@pytest.mark.parametrize(("rate", "nats"), [("5", 5.0), ("auto", 16.0)])
def test_fit_takes_a_rate_in_place_of_a_latent_dimension(data, tmp_path, rate, nats):
    small = ["--image-size", 32, "--epochs", 1, "--option", "hidden_dim=8"]
    done = run(
        "fit", data, "--out", tmp_path / "run", "--method", "rate-ae", "--rate", rate, *small
    )
    assert done.exit_code == 0, done.output
    detector = AnomalyDetector.load(tmp_path / "run")
    settings = detector.model_.settings
    assert (settings.rate, settings.latent_dim) == (nats, 128)
    assert settings.held_out, "the rate is meant for images held out"
    assert settings.damping == 0.1, "or the rate ends wherever its swing is"
    plain = AnomalyDetector(method="rate-ae", image_size=32, epochs=1, device="cpu")
    plain.set_params(method_options={"hidden_dim": 8}).fit(data)
    said = run("research", "explain", tmp_path / "run").output
    assert f"rate, {nats:g} nats on held-out normal images" in " ".join(said.split())
    kept, both = (d.info_["data"]["calibration_images"] for d in (detector, plain))
    assert kept == pytest.approx(both / 2, abs=1), "a half was watched"


def test_a_fit_says_what_rate_came_out(tmp_path):
    drawn = generate(160, PhantomSettings(image_size=32, seed=0)).images
    options = {"rate": 1.0, "held_out": True, "hidden_dim": 8}
    detector = AnomalyDetector(
        method="rate-ae", latent_dim=2, image_size=32, epochs=1, device="cpu",
        calibration_share=0.5, method_options=options,
    )  # fmt: skip
    detector.fit(drawn, run=tmp_path / "run")
    kept = AnomalyDetector.load(tmp_path / "run").info_["measured"]
    assert 0 <= kept["rate_low"] < kept["rate"] < kept["rate_high"]
    said = " ".join(run("research", "explain", tmp_path / "run").output.split())
    interval = f"({kept['rate_low']:.1f} to {kept['rate_high']:.1f})"
    assert f"others, neither seen nor watched: {kept['rate']:.1f} nats {interval}" in said
    plain = AnomalyDetector(image_size=32, epochs=1, device="cpu", method_options={"hidden_dim": 8})
    assert "measured" not in plain.fit(drawn).info_


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rate", "8"], "--rate needs --method rate-ae, got --method ae-u"),
        (["--rate", "much", "--method", "rate-ae"], "must be a number of nats or auto"),
    ],
)
def test_a_rate_that_means_nothing_is_refused_before_anything_is_read(tmp_path, words, said):
    done = run("fit", tmp_path / "nowhere", "--out", tmp_path / "run", *words)
    assert done.exit_code == 2
    assert said in " ".join(done.output.replace("│", " ").split())
