"""Tables, figures, PyOD's vocabulary, progress and labels, as a notebook uses them."""

import io
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from scipy.stats import binom

from normalis import AnomalyDetector, FittedDetector
from normalis.errors import DataError, MissingExtraError, NotFittedError, SettingsError
from normalis.notebook import progress as bars
from normalis.training.loop import Progress

SIDE = 32


@pytest.fixture(scope="module")
def normal():
    return np.random.default_rng(0).random((120, SIDE, SIDE)).astype(np.float32) * 0.5


@pytest.fixture(scope="module")
def new(normal):
    """Ten images, of which the last five have a bright square."""
    images = np.random.default_rng(1).random((10, SIDE, SIDE)).astype(np.float32) * 0.5
    images[5:, 8:16, 20:28] = 1.0
    return images


@pytest.fixture(scope="module")
def detector(normal):
    settings = {"method": "pca", "image_size": SIDE, "latent_dim": 4, "calibration": "split"}
    return AnomalyDetector(**settings).fit(normal)


# --- tables ---


@pytest.mark.parametrize("kind", [AnomalyDetector, FittedDetector])
def test_scores_as_a_frame(detector, new, kind):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    shown = detector if kind is AnomalyDetector else detector.fitted_
    frame = shown.scores_frame(new)
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == [
        "path", "slice", "patient_id", "anomaly_score", "p_value", "flagged",
    ]  # fmt: skip
    assert np.allclose(frame["anomaly_score"], detector.anomaly_score(new))
    assert np.allclose(frame["p_value"], detector.p_value(new))
    assert frame["flagged"].astype(int).tolist() == shown.predict(new).tolist()


def test_a_frame_without_calibration_has_missing_values(normal, new):
    pytest.importorskip("pandas", reason="pandas is not installed")
    bare = AnomalyDetector(method="pca", image_size=SIDE, latent_dim=4, calibration="none")
    frame = bare.fit(normal).scores_frame(new)
    assert frame[["p_value", "flagged"]].isna().all().all()


def test_without_pandas_the_line_that_installs_it_is_said(detector, new, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"scores_frame needs .*pandas.*notebook"):
        detector.scores_frame(new)


# --- reconstructions and figures ---


def test_reconstructions_have_the_range_of_images(detector, normal):
    again = detector.reconstruct(normal[:20])
    assert again.shape == (20, 1, SIDE, SIDE)
    mean = normal.mean(axis=0)
    assert np.abs(again[:, 0] - mean).mean() < np.abs(normal[:20] - mean).mean()


def test_a_method_without_reconstructions_says_so(normal):
    pixels = AnomalyDetector(method="feature-gaussian", image_size=SIDE).fit(normal[:40])
    with pytest.raises(SettingsError, match="feature-gaussian has no reconstructions"):
        pixels.reconstruct(normal[:2])


def test_figures_are_returned_and_can_be_shown(detector, new):
    from matplotlib.figure import Figure

    labels = np.arange(10) >= 5
    scores = detector.plot_scores(new, labels)
    names = [text.get_text() for text in scores.axes[0].get_legend().get_texts()]
    assert "new, anomalous (n = 5)" in names
    assert any(name.startswith("threshold at 5") for name in names)
    case = detector.plot_case(new, 7)
    assert [axes.get_title() for axes in case.axes] == [
        "image", "reconstruction", "above normal images", "its own scale",
    ]  # fmt: skip
    assert f"score {detector.anomaly_score(new)[7]:.4g}" in case.get_suptitle()
    outlined = [len(axes.collections) for axes in case.axes]
    assert outlined == [0, 0, 1, 0], "a line shows where dark colours begin"
    for figure in (scores, case, detector.plot_calibration(), detector.plot_scores()):
        assert isinstance(figure, Figure)
        assert figure._repr_png_()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (
        "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    )


def test_the_calibration_is_drawn_as_it_is(detector):
    (line, *_) = detector.plot_calibration().axes[0].lines
    title = detector.plot_calibration().axes[0].get_title()
    assert re.match(r"\d+ held-out normal images: rates below", title)
    for threshold, rate in list(zip(*line.get_data(), strict=True))[::40]:
        assert threshold == detector.calibration_.threshold(rate)


def test_figures_refuse_what_they_cannot_draw(detector, new, normal):
    with pytest.raises(DataError, match="one per image"):
        detector.plot_scores(new, [True])
    with pytest.raises(DataError, match="index must be below 10"):
        detector.plot_case(new, 10)
    bare = AnomalyDetector(method="pca", image_size=SIDE, latent_dim=4, calibration="none")
    with pytest.raises(NotFittedError, match='calibration="split"'):
        bare.fit(normal).plot_calibration()


# --- PyOD's vocabulary ---


def test_labels_are_of_the_decision_scores(detector):
    labels = detector.labels_
    assert labels.tolist() == (detector.decision_scores_ > detector.threshold_).astype(int).tolist()
    assert labels.mean() <= 0.05


def test_probabilities_are_the_p_values(detector, new):
    found = detector.predict_proba(new)
    assert found.shape == (10, 2)
    assert np.allclose(found.sum(axis=1), 1)
    assert np.array_equal(found[:, 0], detector.p_value(new))


def test_confidence_is_the_published_formula(detector, new):
    held = detector.calibration_.scores
    for score, flag, found in zip(
        detector.anomaly_score(new),
        detector.predict(new),
        detector.predict_confidence(new),
        strict=True,
    ):
        n, below = len(held), int((held <= score).sum())
        high = 1 - binom.cdf(n - int(n * 0.05), n, (1 + below) / (2 + n))
        assert found == pytest.approx(high if flag else 1 - high)


def test_fit_predict(normal):
    one = AnomalyDetector(method="pca", image_size=SIDE, latent_dim=4)
    found = one.fit_predict(normal)
    assert found.tolist() == one.predict(normal).tolist()


# --- labels ---


@pytest.mark.parametrize("y", [None, np.zeros(120), [False] * 120, ["normal"] * 120])
def test_labels_that_say_normal_are_taken(normal, y):
    AnomalyDetector(method="pca", image_size=SIDE, latent_dim=4).fit(normal, y)


@pytest.mark.parametrize("bad", [1, True, "pneumonia", -1, None, np.nan])
def test_any_other_label_is_refused(normal, bad):
    y = np.array([0] * 119 + [bad], dtype=object)
    with pytest.raises(DataError, match="every label must be 0, False or 'normal', label 119"):
        AnomalyDetector(method="pca", image_size=SIDE, latent_dim=4).fit(normal, y)


# --- progress ---


def told(progress):
    for epoch in (1, 2):
        progress(Progress(epoch=epoch, epochs=2, losses={"loss": 0.5}, elapsed_s=3.0 * epoch))


def test_a_line_on_a_terminal_is_written_over():
    stream = io.StringIO()
    told(bars.TextLine(stream))
    first, second = stream.getvalue().split("\r")[1:]
    assert first.startswith("epoch 1 of 2, loss 0.5, 3 s left")
    assert second.startswith("epoch 2 of 2")
    assert second.endswith("\n")


def test_who_hears_of_epochs(monkeypatch):
    def own(_):
        pass

    assert bars.listener(own) is own
    assert bars.listener(None) is None
    assert bars.listener(False) is None
    assert isinstance(bars.listener(True), bars.TextLine)
    monkeypatch.setattr(bars, "in_notebook", lambda: True)
    assert isinstance(bars.listener(None), bars.NotebookBar)
    assert isinstance(bars.listener(True), bars.NotebookBar)
    assert bars.listener(False) is None


def test_the_bar_of_a_notebook_is_one_and_is_moved(monkeypatch):
    from types import ModuleType

    shown, moved = [], []
    fake, parent = ModuleType("IPython.display"), ModuleType("IPython")
    fake.HTML = str
    handle = type("Handle", (), {"update": lambda self, text: moved.append(text)})()
    fake.display = lambda text, display_id: shown.append(text) or handle
    monkeypatch.setitem(sys.modules, "IPython", parent)
    monkeypatch.setitem(sys.modules, "IPython.display", fake)
    told(bars.NotebookBar())
    assert len(shown) == len(moved) == 1
    assert 'value="2" max="2"' in moved[0]


def test_fit_prints_where_it_is_asked_to(normal, capsys):
    network = AnomalyDetector(
        method="ae", image_size=SIDE, latent_dim=2, epochs=2, calibration="none", device="cpu"
    )
    network.fit(normal[:16], progress=True)
    assert "epoch 2 of 2" in capsys.readouterr().err
    network.fit(normal[:16])
    assert capsys.readouterr().err == ""


# --- as a cell shows it ---


def test_html_has_the_strip_of_held_out_scores(detector):
    for shown in (detector, detector.fitted_):
        html = shown._repr_html_()
        HTMLParser().feed(html)
        n = detector.decision_scores_.size
        assert html.count("V22") == n
        assert f"scores of {n} held-out normal images" in html
        assert f"flagged above {detector.threshold_:.4g}" in html
        assert len(html) < 20_000
    bundle = detector._repr_mimebundle_()
    assert bundle["text/html"] == detector._repr_html_()


def test_html_before_fit_shows_the_settings():
    assert "latent_dim=7" in AnomalyDetector(latent_dim=7)._repr_html_()
