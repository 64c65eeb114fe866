"""Contracts that every scorer keeps, and known truths of each."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from scipy import ndimage
from torch import nn

from normalis import models, scorers
from normalis.errors import DataError, NotFittedError, SettingsError
from normalis.models.ssim import dissimilarity
from normalis.scorers.base import reduce_map
from normalis.scorers.median import median_filter

METHODS = ("ae", "vae", "ae-u", "dae", "ganomaly", "pca", "knn", "intensity")


QUICK = {"restoration": {"steps": 4}}  # what makes a scorer slow


def build(name, **options):
    return scorers.build(name, **{**QUICK.get(name, {}), **options})


def inputs(n, *, seed=0):
    return torch.rand(n, 1, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def fitted():
    """Return a small fitted model of each method; networks keep their first weights."""
    cache = {}

    def make(method, **options):
        key = method, *options.items()
        if key not in cache:
            extra = {"width": 4} if method == "dae" else {}
            model = models.build(
                method, image_size=32, hidden_dim=8, latent_dim=3, **extra, **options
            )
            cache[key] = model.eval() if isinstance(model, nn.Module) else model.fit(inputs(12))
        return cache[key]

    return make


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", scorers.SCORERS)
def test_contract(name, method, fitted):
    model, x = fitted(method), inputs(4, seed=1)
    scorer = build(name)
    reason = scorer.supports(model)
    if reason:
        with pytest.raises(SettingsError, match="needs a method"):
            scorer.fit(model, inputs(8, seed=2)).anomaly_map(model, x)
        return
    if scorer.needs_fit:
        with pytest.raises(NotFittedError, match="fit"):
            scorer.anomaly_score(model, x)
    scorer.fit(model, inputs(8, seed=2))
    anomaly_map, score = scorer.anomaly_map(model, x), scorer.anomaly_score(model, x)
    assert anomaly_map.shape == (4, 32, 32)
    assert score.shape == (4,)
    assert torch.isfinite(anomaly_map).all()
    assert torch.isfinite(score).all()
    assert not score.requires_grad
    alone = torch.cat([scorer.anomaly_score(model, x[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(alone, score, rtol=1e-3, atol=1e-4)
    again = build(name)
    again.load_state(load(save(scorer.state())))
    assert torch.equal(again.anomaly_score(model, x), score)
    assert torch.equal(again.anomaly_map(model, x), anomaly_map)


@pytest.mark.parametrize("name", scorers.SCORERS)
def test_a_model_in_training_is_read_in_evaluation_mode_and_left_as_it_was(name, fitted):
    x = inputs(4, seed=1)
    scorer = build(name).fit(fitted("vae"), inputs(8))
    expected = scorer.anomaly_score(fitted("vae"), x)
    model = models.build("vae", image_size=32, hidden_dim=8, latent_dim=3).train()
    torch.testing.assert_close(scorer.anomaly_score(model, x), expected)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", scorers.SCORERS)
def test_scoring_works_in_inference_mode(name, fitted):
    x = inputs(2, seed=1)
    scorer = build(name).fit(fitted("vae"), inputs(8))
    expected = scorer.anomaly_map(fitted("vae"), x)
    with torch.inference_mode():
        torch.testing.assert_close(scorer.anomaly_map(fitted("vae"), x.clone()), expected)


def test_classes_and_names_outside_the_package_are_found():
    from normalis.scorers.l1 import L1

    assert scorers.scorer_class(L1) is L1
    assert isinstance(scorers.build("normalis.scorers.l1:L1"), L1)
    assert scorers.scorer_names() == list(scorers.SCORERS)
    with pytest.raises(SettingsError, match="did you mean 'ssim'"):
        scorers.build("sim")
    with pytest.raises(SettingsError, match="cannot be imported"):
        scorers.build("nowhere:Class")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("native", {"reduction": "median"}, "reduction must be mean, max, top:SHARE"),
        ("native", {"reduction": "top:1.5"}, "got 'top:1.5'"),
        ("native", {"reduction": "top"}, "got 'top'"),
        ("native", {"reduction": "mean:0.5"}, "got 'mean:0.5'"),
        ("native", {"reducton": "max"}, "did you mean 'reduction'"),
        ("median", {"share": 0.3}, r"share must be in \(0, 0.2\], got 0.3"),
        ("median", {"part": "median"}, "part must be a scorer with a map of its own"),
        ("gradient", {"form": "l2"}, "form must be one of loss, rec, kl, elbo, combi"),
        ("gradient", {"smoothing": 0.5}, r"smoothing must be in \[0, 0.2\], got 0.5"),
        ("postprocessed", {"median": 4}, "median must be odd, or 0 for none, got 4"),
        ("postprocessed", {"prior_quantile": 1.0}, r"prior_quantile must be in \[0, 1\)"),
        ("postprocessed", {"rate": 0}, r"rate must be in \(0, 1\), got 0"),
        ("postprocessed", {"erode": -1}, "erode must be at least 0"),
        ("postprocessed", {"part": "postprocessed"}, "part must be a scorer with a map of its own"),
        ("restoration", {"steps": 0}, "steps must be at least 1, got 0"),
        ("restoration", {"tv": -1}, "tv must be at least 0, got -1"),
        ("restoration", {"clip": 0}, "clip must be above 0, got 0"),
        ("restoration", {"less": 1}, r"less must be in \[0, 1\), got 1"),
        ("normalised", {"floor": 0}, "floor must be at least 1e-06"),
        ("combination", {"parts": "l2"}, "at least two different scorers"),
        ("combination", {"parts": "l2,combination"}, "other than combination"),
        ("combination", {"parts": "l2,ssim", "weights": "1"}, "weights must be 2 numbers above 0"),
        ("combination", {"parts": "l2,ssim", "weights": "1,x"}, "weights must be numbers"),
        ("combination", {"parts": "l2,sim"}, "did you mean 'ssim'"),
    ],
)
def test_settings_are_checked(name, options, message):
    with pytest.raises(SettingsError, match=message):
        scorers.build(name, **options)


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0.001, 0.999), seed=st.integers(0, 1000))
def test_reductions_equal_numpy(share, seed):
    maps = np.random.default_rng(seed).random((3, 8, 9), dtype=np.float32)
    flat = np.sort(maps.reshape(3, -1), axis=1)
    top = flat[:, -max(1, round(share * 72)) :].mean(1)
    quantile = np.quantile(flat, share, axis=1, method="inverted_cdf")
    expected = {
        "mean": flat.mean(1), "max": flat[:, -1],
        f"top:{share}": top, f"quantile:{share}": quantile,
    }  # fmt: skip
    for reduction, value in expected.items():
        ours = reduce_map(torch.from_numpy(maps), reduction).numpy()
        np.testing.assert_allclose(ours, value, rtol=1e-5)


def test_native_is_the_methods_own_score_unless_told_otherwise(fitted):
    model, x = fitted("ganomaly"), inputs(3)
    assert torch.equal(scorers.build().anomaly_score(model, x), model.anomaly_score(x))
    highest = scorers.build("native", reduction="max").anomaly_score(model, x)
    assert torch.equal(highest, model.anomaly_map(x).flatten(1).amax(1))


def test_residuals_compare_image_and_reconstruction(fitted):
    model, x = fitted("ae-u"), inputs(3)
    error = (x - model.reconstruct(x).detach())[:, 0]
    expected = {
        "l2": error**2, "l1": error.abs(),
        "ssim": dissimilarity(x, model.reconstruct(x).detach())[:, 0],
    }  # fmt: skip
    for name, value in expected.items():
        torch.testing.assert_close(scorers.build(name).anomaly_map(model, x), value)
    assert not torch.allclose(scorers.build("native").anomaly_map(model, x), expected["l2"])


def test_gradient_of_the_mean_image_is_known(fitted):
    model = models.build("mean-image", image_size=32).fit(inputs(5))
    x = inputs(2, seed=1)
    expected = 2 * (x - model.fitted("mean")).abs()[:, 0] / (32 * 32)
    torch.testing.assert_close(scorers.build("gradient").anomaly_map(model, x), expected)


def test_gradient_equals_finite_differences(fitted):
    model = models.build("pca", image_size=32, latent_dim=3)
    model.load_state({k: v.double() for k, v in fitted("pca").state().items()})
    x, step = inputs(1, seed=1).double(), 1e-3  # float32 has too few digits for a difference
    gradient = scorers.build("gradient").anomaly_map(model, x)[0]
    with torch.no_grad():
        for row, column in ((3, 5), (16, 16), (30, 1)):
            up, down = x.clone(), x.clone()
            up[..., row, column] += step
            down[..., row, column] -= step
            slope = (model.anomaly_score(up) - model.anomaly_score(down)) / (2 * step)
            assert gradient[row, column].item() == pytest.approx(abs(slope.item()), rel=1e-4)


def test_gradient_forms_of_a_vae(fitted):
    model, x = fitted("vae", beta=3.0), inputs(2)
    maps = {
        form: scorers.build("gradient", form=form).anomaly_map(model, x)
        for form in ("rec", "loss", "kl", "elbo", "combi")
    }
    assert torch.equal(maps["rec"], maps["loss"])
    torch.testing.assert_close(maps["combi"], maps["kl"] * model.anomaly_map(x).detach())
    assert (maps["kl"] > 0).any()
    # The gradient of a sum lies within the sum of the gradients.
    assert (maps["elbo"] <= maps["rec"] + 3.0 * maps["kl"] + 1e-7).all()
    assert not torch.allclose(maps["elbo"], maps["rec"])


def test_a_linear_encoders_kl_has_the_gradient_of_its_square(fitted):
    """With mu = A x and a constant variance dKL/dx is AᵀA x."""
    model, x = fitted("vae", kl_reduction="sum"), inputs(2)
    weights = torch.randn(3, 32 * 32, generator=torch.Generator().manual_seed(5)) / 32
    weights[:, :32] = 0  # the first row is out of what the encoder sees

    class Linear(type(model)):
        def posterior(self, x):
            mu = x.flatten(1) @ weights.T
            return mu, torch.full_like(mu, -1.0)

    linear = Linear(model.settings).eval()
    found = scorers.build("gradient", form="kl").anomaly_map(linear, x)
    expected = (x.flatten(1) @ weights.T @ weights).view(2, 32, 32).abs()
    torch.testing.assert_close(found, expected)
    assert (found[:, 0] == 0).all()


def test_products_of_error_and_slope(fitted):
    model, x = fitted("vae", beta=3.0), inputs(2)
    own = model.anomaly_map(x).detach()
    read = {
        form: scorers.build("gradient", form=form, smoothing=0.1).anomaly_map(model, x)
        for form in ("kl", "elbo", "combi", "cevae")
    }
    torch.testing.assert_close(read["combi"], own * read["kl"])
    torch.testing.assert_close(read["cevae"], own * read["elbo"])
    raw = scorers.build("gradient", form="kl").anomaly_map(model, x).numpy()
    line = np.exp(-0.5 * (np.arange(-3, 4) / 3.2) ** 2)
    for axis in (1, 2):
        raw = ndimage.correlate1d(raw, line / line.sum(), axis=axis, mode="mirror")
    np.testing.assert_allclose(read["kl"], raw, rtol=1e-4, atol=1e-9)


def test_gradient_forms_with_a_kl_need_one(fitted):
    scorer = scorers.build("gradient", form="kl")
    assert "needs a method with a KL (vae), got AE" in scorer.supports(fitted("ae"))
    with pytest.raises(SettingsError, match="form kl needs"):
        scorer.anomaly_map(fitted("ae"), inputs(1))


def test_normalised_map_is_one_on_the_normal_images(fitted):
    model, normal = fitted("ae"), inputs(300)  # more than one pass of fit
    scorer = scorers.build("normalised", floor=1e-6).fit(model, normal)
    mean = scorer.anomaly_map(model, normal).mean(0)
    torch.testing.assert_close(mean, torch.ones(32, 32), rtol=1e-3, atol=1e-3)


def test_normalised_map_survives_pixels_that_never_fail():
    normal = inputs(6)
    normal[..., :8] = -1  # background, which the mean image predicts exactly
    model = models.build("mean-image", image_size=32).fit(normal)
    scorer = scorers.build("normalised").fit(model, normal)
    x = normal.clone()
    x[0, 0, 4, 4] = 0
    anomaly_map = scorer.anomaly_map(model, x)
    assert torch.isfinite(anomaly_map).all()
    assert anomaly_map[0].argmax() == 4 * 32 + 4


def test_mahalanobis_equals_the_closed_form(fitted):
    from sklearn.covariance import LedoitWolf

    model, normal, x = fitted("pca"), inputs(40, seed=2), inputs(5, seed=3)
    scorer = scorers.build("mahalanobis").fit(model, normal)
    reference = LedoitWolf().fit(model.encode(normal).double().numpy())
    expected = reference.mahalanobis(model.encode(x).double().numpy()) / 3
    np.testing.assert_allclose(scorer.anomaly_score(model, x), expected, rtol=1e-4)
    assert scorer.anomaly_score(model, normal).mean() == pytest.approx(1, abs=0.3)
    assert torch.equal(scorer.anomaly_map(model, x), model.anomaly_map(x))


def test_fitting_needs_two_images(fitted):
    for name in ("mahalanobis", "combination"):
        with pytest.raises(DataError, match="at least 2 normal images, got 1"):
            scorers.build(name).fit(fitted("ae"), inputs(1))


def test_combination_standardises_its_parts(fitted):
    model, normal = fitted("ae"), inputs(50)
    parts = ["l2", "ssim", "mahalanobis", "normalised"]
    scorer = scorers.build("combination", parts=parts, weights=[4, 2, 1, 1]).fit(model, normal)
    assert scorer.settings.weights == (0.5, 0.25, 0.125, 0.125)
    expected = torch.zeros(50)
    for name, weight in zip(parts, scorer.settings.weights, strict=True):
        part = scorers.build(name).fit(model, normal)
        logs = part.anomaly_score(model, normal).log()
        expected += weight * (logs - logs.mean()) / logs.std()
    torch.testing.assert_close(scorer.anomaly_score(model, normal), expected, rtol=1e-3, atol=1e-4)
    assert scorer.anomaly_map(model, normal).mean().item() == pytest.approx(1, rel=1e-3)


def test_combination_reads_commas():
    scorer = scorers.build("combination", parts="l2, ssim", weights="1,3")
    assert scorer.settings.to_dict()["parts"] == ("l2", "ssim")
    assert scorer.settings.weights == (0.25, 0.75)
    again = scorers.build("combination", **scorer.settings.to_dict())
    assert again.settings == scorer.settings


@settings(max_examples=30)
@given(
    height=st.integers(2, 9),
    width=st.integers(2, 9),
    half=st.integers(0, 3),
    seed=st.integers(0, 9),
)
def test_the_median_filter_equals_scipys(height, width, half, seed):
    half = min(half, height - 1, width - 1)
    # Few values make many ties.
    maps = np.random.default_rng(seed).integers(0, 4, (3, height, width)).astype(np.float32)
    window = 2 * half + 1
    expected = ndimage.median_filter(maps, size=(1, window, window), mode="mirror")
    np.testing.assert_array_equal(median_filter(torch.from_numpy(maps), window), expected)


class Given(nn.Module):
    """A method whose map is the image."""

    has_latent = False

    def anomaly_map(self, x):
        return x[:, 0]


@pytest.mark.parametrize("side", [32, 64, 96, 256])
def test_median_keeps_areas_and_drops_lines(side):
    x = torch.zeros(2, 1, side, side)
    x[0, 0, :, side // 2] = 1
    quarter = side // 4
    x[1, 0, quarter : 2 * quarter, quarter : 2 * quarter] = 1
    scorer = scorers.build("median")
    found = scorer.anomaly_map(Given(), x)
    assert found.shape == (2, side, side)
    assert found[0].max() < 0.01
    assert found[1].mean() == pytest.approx(1 / 16, rel=0.1)
    assert scorer.anomaly_score(Given(), x)[1] == pytest.approx(1, abs=0.02)


def test_median_of_another_part_and_its_settings(fitted):
    model, x = fitted("ae"), inputs(3)
    scorer = scorers.build("median", part="l1", share=0.1, reduction="mean")
    window = median_filter(scorers.build("l1").anomaly_map(model, x), 3)
    assert torch.equal(scorer.anomaly_map(model, x), window)
    torch.testing.assert_close(scorer.anomaly_score(model, x), window.mean((1, 2)))
    normalised = scorers.build("median", part="normalised")
    with pytest.raises(NotFittedError):
        normalised.anomaly_map(model, x)
    assert set(normalised.fit(model, x).state()) == {"mean"}


def test_the_usual_reading_leaves_scores_of_their_own_alone():
    usual = {m: scorers.default_scorer(models.model_class(m)) for m in models.MODELS}
    assert {m for m, name in usual.items() if name == "native"} == {
        "anogan", "f-anogan", "feature-ae", "feature-gaussian", "feature-knn", "ganomaly",
        "hvq-trans", "intensity", "padim", "spade", "uniad", "vq-transformer",
    }  # fmt: skip
    for name in scorers.SCORERS:
        assert scorers.scorer_class(name).Settings().reduction == scorers.default_reduction(name)
