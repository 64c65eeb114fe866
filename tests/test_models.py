"""Contracts that every method keeps, and known truths of each."""

import inspect
import math
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save, save_file
from skimage.metrics import structural_similarity
from torch import nn

from normalis import baselines as trivial
from normalis import models
from normalis.entropy import coding_rate, coding_rate_from_covariance, coding_rate_of_groups
from normalis.errors import DataError, NotFittedError, SettingsError
from normalis.models.ae_perceptual import PerceptualAE
from normalis.models.ae_u import AEU
from normalis.models.backbone import doublings
from normalis.models.base import AnomalyModel, Autoencoder, DirectModel, ModelSettings
from normalis.models.ceae import CeAE, CeAESettings
from normalis.models.dae import DAE
from normalis.models.features import FeatureModel
from normalis.models.ganomaly import GANomaly
from normalis.models.memae import MemAE
from normalis.models.nested_ae import NestedAE, truncate, widths_up_to
from normalis.models.pca import PCA
from normalis.models.rate_ae import RateAE
from normalis.models.ssim import similarity
from normalis.models.vae import VAE, gaussian_kl
from normalis.models.vgg19 import VGG19
from normalis.training import loop as training

METHODS_PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "methods.md"
SMALL = {"hidden_dim": 8, "latent_dim": 3}
TRAINED = [n for n in models.MODELS if issubclass(models.model_class(n), Autoencoder)]
ON_FEATURES = [n for n in models.MODELS if issubclass(models.model_class(n), FeatureModel)]


def tiny_network_grey() -> nn.Module:
    """A feature network of a user's own, for ae-perceptual."""
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=4), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1))


def tiny_network_rgb() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1))


@pytest.fixture(scope="session")
def perceptual_options(tmp_path_factory):
    """Options of ae-perceptual with small random weights, by channels."""
    folder = tmp_path_factory.mktemp("weights")
    options = {}
    for channels, network in ((1, tiny_network_grey), (3, tiny_network_rgb)):
        path = folder / f"{channels}.safetensors"
        torch.manual_seed(0)
        save_file(network().state_dict(), path)
        name = f"{__name__}:{network.__name__}"
        options[channels] = {"weights": str(path), "network": name, "layer": "0"}
    return options


@pytest.fixture
def build(perceptual_options):
    """Build any method at a small size."""

    def make(method, *, channels=1, seed=0, **options):
        extra = {
            "dae": {"width": 4},
            "restore": {"width": 4},
            "morphaeus": {"width": 4},
            "ddad": {"members": 2, "refiner_width": 4},
            "vq-transformer": {"width": 8, "codes": 8, "transformer_width": 16, "depth": 1},
            "feature-ae": {"steps": 20},
            "uniad": {"steps": 3, "stride": 8, "width": 16},
            "hvq-trans": {"steps": 3, "stride": 8, "width": 16, "codes": 16},
            "anogan": {"search_steps": 5, "critic_width": 4},
            "f-anogan": {"critic_width": 4},
            "ae-perceptual": perceptual_options[channels],
        }
        options = {**SMALL, **extra.get(method, {}), **options}
        return models.build(method, channels=channels, seed=seed, **options)

    return make


def images(n, *, size=32, channels=1, seed=0):
    """Return smooth blobs on a black background, uint8: something that can be learnt."""
    source = torch.Generator().manual_seed(seed)
    line = torch.linspace(-1, 1, size)
    centre = torch.rand(n, channels, 2, 1, generator=source) - 0.5
    y, x = (-((line - centre[:, :, i]) ** 2 / 0.2) for i in (0, 1))
    blobs = torch.exp(y[..., :, None] + x[..., None, :])
    return (255 * blobs * (blobs > 0.1)).to(torch.uint8)


def model_input(n, **options):
    return training.to_model_input(images(n, **options))


def fitted(model, n=6, **options):
    if isinstance(model, DirectModel):
        return model.fit(model_input(n, **options))
    return model.eval()


def quick(epochs, **options):
    return training.TrainingSettings(
        **{"epochs": epochs, "batch_size": 16, "precision": "float32", **options}
    )


# ---------------------------------------------------------------- contracts of every method


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("method", models.MODELS)
def test_maps_and_scores(method, size, channels, build):
    model = fitted(build(method, image_size=size, channels=channels), size=size, channels=channels)
    x = model_input(4, size=size, channels=channels, seed=1)
    with torch.no_grad():
        anomaly_map, score = model.anomaly_map(x), model.anomaly_score(x)
        assert anomaly_map.shape == (4, size, size)
        assert score.shape == (4,)
        assert torch.isfinite(anomaly_map).all()
        assert (anomaly_map >= 0).all()
        assert torch.equal(model.anomaly_map(x), anomaly_map), "scoring must be deterministic"
        alone = torch.cat([model.anomaly_score(x[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(alone, score, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", models.MODELS)
def test_save_and_load_give_equal_maps(method, build):
    model = build(method, image_size=32)
    pixels, x = images(16), model_input(3, seed=1)
    training.fit(model, pixels, settings=quick(1), device="cpu")
    again = build(method, image_size=32, seed=99)
    again.load_state(load(save(model.state())))
    if isinstance(again, nn.Module):
        again.eval()
    with torch.no_grad():
        assert torch.equal(again.anomaly_map(x), model.anomaly_map(x))
        assert torch.equal(again.anomaly_score(x), model.anomaly_score(x))


@pytest.mark.parametrize("method", models.MODELS)
def test_reconstruction_has_the_images_shape(method, build):
    model = fitted(build(method, image_size=32))
    x = model_input(2, seed=1)
    x_hat = model.reconstruct(x)
    if type(model).reconstruct is AnomalyModel.reconstruct:
        assert x_hat is None
    else:
        assert x_hat.shape == x.shape


@pytest.mark.parametrize("method", models.MODELS)
def test_codes_have_latent_dim_numbers(method, build):
    model = fitted(build(method, image_size=32))
    if not model.has_latent:
        without = ("dae", "restore", "vq-transformer", "mean-image", "intensity", "knn")
        assert method in (*without, *ON_FEATURES)
        return
    x = model_input(2)
    z = model.encode(x)
    # 32 / 16 and 32 / 4 pixels squared, or codes of several networks
    places = {"ae-spatial": 2 * 2, "gmvae": 8 * 8, "ddad": 2}.get(method, 1)
    assert z.shape == (2, SMALL["latent_dim"] * places)
    assert model.decode(z).shape == x.shape


@pytest.mark.parametrize("method", TRAINED)
def test_every_parameter_gets_a_finite_gradient(method, build):
    model = build(method, image_size=32).train()
    x = model_input(8)
    draws = model.draw(x, torch.Generator().manual_seed(0))
    trained = set()
    for phase in model.phases():
        model.zero_grad()
        sum(phase.losses(x, **draws).values()).backward()
        for p in phase.parameters:
            assert p.grad is not None
            assert torch.isfinite(p.grad).all()
            trained.add(p)
    assert trained == {p for p in model.parameters() if p.requires_grad}


# A generator's loss falls and rises with its adversary's: tests/test_adversarial_methods.py. The
# transformer's begins when the first stage has ended: tests/test_tokens.py.
ELSEWHERE = ("anogan", "f-anogan", "vq-transformer")


@pytest.mark.slow
@pytest.mark.parametrize("method", [m for m in TRAINED if m not in ELSEWHERE])
def test_the_loss_falls(method, build):
    model = build(method, image_size=32)
    history = training.fit(model, images(32), settings=quick(12), device="cpu")
    # Other terms of a method with an adversary depend on somebody who learns as well.
    alone = len(model.phases()) == 1 or method == "ae-u"
    names = list(history[0]) if alone else ["reconstruction"]
    if method == "ddad":  # whose refinement is trained when the networks are
        names = ["reconstruction", "log_var"]
        history = [epoch for epoch in history if "log_var" in epoch]
    first, last = (sum(epoch[n] for n in names) for epoch in (history[0], history[-1]))
    assert last < 0.9 * first if first > 0 else last < first - 0.1


@pytest.mark.parametrize("method", TRAINED)
def test_losses_are_float32_and_depend_on_the_draws_alone(method, build):
    model = build(method, image_size=32).train()
    x, before = model_input(4), torch.get_rng_state()
    draws = model.draw(x, torch.Generator().manual_seed(0))
    for phase in model.phases():
        torch.manual_seed(1)
        first = phase.losses(x, **draws)
        torch.manual_seed(2)
        second = phase.losses(x, **draws)
        with torch.autocast("cpu", torch.bfloat16):
            coarse = phase.losses(x, **draws)
        for name, loss in first.items():
            assert torch.equal(loss, second[name])
            assert coarse[name].dtype == torch.float32
            torch.testing.assert_close(coarse[name], loss, rtol=0.1, atol=0.02)
    torch.set_rng_state(before)
    model.draw(x, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before), "draw must use its own generator"


@pytest.mark.parametrize("method", TRAINED)
def test_the_same_seeds_train_the_same_model(method, build):
    states = []
    for _ in range(2):
        torch.rand(1)  # the global state differs
        model = build(method, image_size=32, seed=5)
        training.fit(model, images(16), settings=quick(2), seed=3, device="cpu")
        states.append(model.state())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


@pytest.mark.parametrize("method", models.MODELS)
def test_the_docstring_says_what_the_table_needs(method):
    text = sys.modules[models.model_class(method).__module__].__doc__
    assert "\n    " in text, "an equation, indented"
    assert "\nReference: " in text
    assert "\nUse: " in text


@pytest.mark.parametrize("method", models.MODELS)
def test_the_page_of_methods_is_up_to_date(method):
    """If this fails, run docs/make_methods.py --text."""
    page = METHODS_PAGE.read_text(encoding="utf-8")
    assert f"| [`{method}`](#{method}) |" in page
    text = inspect.cleandoc(sys.modules[models.model_class(method).__module__].__doc__)
    (equation, *_) = (p for p in text.split("\n\n") if p.startswith("    "))
    assert textwrap.dedent(equation) in page
    use = next(p for p in text.split("\n\n") if p.startswith("Use: "))
    assert use.removeprefix("Use: ").replace("\n", " ") in page


@pytest.mark.parametrize("method", [m for m in models.MODELS if m not in TRAINED])
def test_baselines_must_be_fitted_first(method, build):
    with pytest.raises(NotFittedError, match="call fit or load first"):
        build(
            method, image_size=32, **({"sign": "both"} if method == "intensity" else {})
        ).anomaly_score(model_input(2))


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("ae", {"loss": "l3"}, "loss must be one of l2, l1, ssim, got 'l3'"),
        ("ae", {"latent_dims": 3}, "did you mean 'latent_dim'"),
        ("vae", {"beta": -1}, "beta must be at least 0, got -1"),
        ("vae", {"kl_reduction": "max"}, "kl_reduction must be one of mean, sum"),
        ("memae", {"slots": 2.5}, "slots must be a whole number, got 2.5"),
        ("ae", {"latent_dim": True}, "latent_dim must be a whole number, got True"),
        ("vae", {"beta": "0.1"}, "beta must be a number, got '0.1'"),
        ("dae", {"foreground_only": 1}, "foreground_only must be true or false, got 1"),
        ("ae", {"loss": 2}, "loss must be a text, got 2"),
        ("memae", {"slots": 0}, "slots must be at least 1, got 0"),
        ("memae", {"slots": 400}, "shrinkage must be below 1 / slots = 0.0025"),
        ("ceae", {"erased_share": 1.0}, "erased_share must be in"),
        ("ae-baur", {"bottleneck": "wide"}, "bottleneck must be one of dense, spatial"),
        ("ae-baur", {"bottleneck": "spatial", "latent_dim": 16}, "must be a multiple of 64"),
        ("ae-baur", {"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ("gmvae", {"clusters": 0}, "clusters must be at least 1, got 0"),
        ("gmvae", {"clusters": 300}, "clusters must be at most 256, got 300"),
        ("cevae", {"context": -1}, "context must be at least 0"),
        ("cevae", {"least_erased": 0.2}, r"most_erased must be in \[least_erased, 1\), got 0.1"),
        ("constrained-ae", {"latent_weight": math.nan}, "latent_weight must be at least 0"),
        (
            "constrained-aae",
            {"adversarial_rate": -1},
            "adversarial_rate must be at least 0, got -1",
        ),
        ("anovaegan", {"critic_steps": 0}, "critic_steps must be at least 1, got 0"),
        ("f-anogan", {"bound": "relu"}, "bound must be one of tanh, none, got 'relu'"),
        ("f-anogan", {"encoder_loss": "zz"}, "encoder_loss must be one of izi_f, izi, ziz"),
        ("anogan", {"feature_weight": 1.5}, r"feature_weight must be in \[0, 1\], got 1.5"),
        ("anogan", {"step_size": 0.0}, "step_size must be above 0, got 0.0"),
        ("rate-ae", {"rate": 0.0}, "rate must be above 0, got 0.0"),
        ("rate-ae", {"memory": 1.0}, r"memory must be in \[0, 1\), got 1.0"),
        ("nested-ae", {"latent_dim": 4, "read_dim": 5}, "read_dim must be 1 to latent_dim = 4"),
        ("dae", {"depth": 6}, "depth must be 2 to 5"),
        ("ganomaly", {"adversarial_weight": -1}, "adversarial_weight must be at least 0"),
        ("intensity", {"sign": "up"}, "sign must be one of bright, dark, both"),
        ("knn", {"neighbours": 0}, "neighbours must be at least 1"),
        ("ae-perceptual", {}, "this package brings no such weights: set weights to a file"),
        ("ae-perceptual", {"weights": "x", "layer": "features.40"}, "features.0 to features.36"),
        ("ae-perceptual", {"weights": "x", "network": "nowhere:net"}, "network must be vgg19 or"),
        ("aes", {}, "did you mean"),
    ],
)
def test_settings_are_checked(method, options, message):
    with pytest.raises(SettingsError, match=message):
        models.build(method, **options)


# ---------------------------------------------------------------- known truths


@pytest.mark.parametrize("size", [16, 64, 128])
@pytest.mark.parametrize("bottleneck", ["dense", "spatial"])
def test_both_bottlenecks_of_the_comparison_hold_as_many_numbers(size, bottleneck):
    model = models.build("ae-baur", image_size=size, bottleneck=bottleneck, width=8).eval()
    x = torch.rand(3, 1, size, size)
    z = model.encode(x)
    assert z.shape == (3, 128)
    assert model.settings.side == 8
    torch.testing.assert_close(model.anomaly_map(x), (x - model.decode(z)).abs()[:, 0])
    other = torch.cat([x[:2], torch.ones(1, 1, size, size)])
    torch.testing.assert_close(model.encode(other)[:2], z[:2])


def test_dropout_of_the_bottleneck_keeps_its_mean():
    model = models.build("ae-baur", dropout=0.25)
    kept = model.draw(torch.zeros(500, 1, 64, 64), torch.Generator().manual_seed(0))["kept"]
    assert kept.unique().tolist() == pytest.approx([0, 4 / 3])
    assert kept.mean().item() == pytest.approx(1, abs=0.01)
    spatial = models.build("ae-baur", bottleneck="spatial")
    assert (spatial.draw(torch.zeros(2, 1, 64, 64), torch.Generator())["kept"] == 1).all()


def test_ssim_equals_scikit_image(rng):
    x, y = rng.random((2, 2, 3, 24, 24), dtype=np.float32)
    ours = similarity(torch.from_numpy(2 * x - 1), torch.from_numpy(2 * y - 1)).numpy()
    for i, c in np.ndindex(2, 3):
        _, full = structural_similarity(
            x[i, c], y[i, c], gaussian_weights=True, sigma=1.5, win_size=11,
            use_sample_covariance=False, data_range=1.0, full=True,
        )  # fmt: skip
        np.testing.assert_allclose(ours[i, c], full[5:-5, 5:-5], atol=1e-4)


@pytest.mark.parametrize("loss", ["l2", "l1", "ssim"])
def test_ae_is_read_by_the_loss_it_was_trained_on(loss, build):
    model = build("ae", image_size=32, loss=loss).eval()
    x = model_input(4)
    with torch.no_grad():
        torch.testing.assert_close(model.losses(x)["reconstruction"], model.anomaly_map(x).mean())
    if loss != "ssim":
        error = (x - model.reconstruct(x)).abs()
        expected = error if loss == "l1" else error**2
        torch.testing.assert_close(model.anomaly_map(x), expected[:, 0])


class LinearAE(Autoencoder):
    """One linear layer each way: the textbook case."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        self.shape = (settings.channels, settings.image_size, settings.image_size)
        pixels = math.prod(self.shape)
        self.encoder = nn.Linear(pixels, settings.latent_dim)
        self.decoder = nn.Linear(settings.latent_dim, pixels)

    def encode(self, x):
        return self.encoder(x.flatten(1))

    def decode(self, z):
        return self.decoder(z).unflatten(1, self.shape)

    def losses(self, x, **draws):
        return {"reconstruction": (self(x) - x).square().mean()}


@pytest.mark.slow
def test_a_linear_autoencoder_spans_the_principal_subspace():
    source = torch.Generator().manual_seed(0)
    factors = torch.randn(128, 3, generator=source) * torch.tensor([3.0, 2.0, 1.5])
    pixels = factors @ torch.randn(3, 256, generator=source) / 20 + 0.5
    pixels = (pixels + 0.02 * torch.randn(128, 256, generator=source)).view(-1, 1, 16, 16)
    pca = models.build("pca", image_size=16, latent_dim=3)
    pca.fit(training.to_model_input(pixels))
    linear = models.build(LinearAE, image_size=16, latent_dim=3)
    training.fit(
        linear, pixels, settings=quick(600, batch_size=64, learning_rate=3e-3), device="cpu"
    )
    span = torch.linalg.qr(linear.decoder.weight.detach()).Q
    cosines = torch.linalg.svdvals(pca.fitted("directions") @ span)
    assert cosines.min() > 0.99


def test_baselines_equal_the_scores_of_the_audit():
    train, test = images(40), images(10, seed=1)
    x = training.to_model_input(test)
    expected = {
        "mean-image": trivial.mean_image_residual(test.numpy(), train=train.numpy()),
        "knn": trivial.nearest_training(test.numpy(), train=train.numpy()),
    }
    for method, scores in expected.items():
        model = models.build(method, image_size=32).fit(training.to_model_input(train))
        ours = model.anomaly_score(x).numpy() / 4  # [-1, 1] is twice as wide as [0, 1]
        np.testing.assert_allclose(ours, scores, rtol=1e-3, atol=1e-7)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(4, 30), d=st.integers(1, 3), seed=st.integers(0, 99))
def test_pca_is_exact(n, d, seed):
    x = torch.randn(n, 1, 16, 16, generator=torch.Generator().manual_seed(seed)) / 3
    pca = PCA(ModelSettings(image_size=16, latent_dim=d)).fit(x)
    flat = (x - x.mean(0)).flatten(1).double()
    u, s, v = torch.linalg.svd(flat, full_matrices=False)
    best = (u[:, :d] * s[:d]) @ v[:d]
    expected = (flat - best).square().mean(1).float()
    torch.testing.assert_close(pca.anomaly_score(x), expected, rtol=1e-3, atol=1e-6)


def test_pca_needs_enough_images():
    with pytest.raises(DataError, match="more images than latent_dim"):
        models.build("pca", image_size=32, latent_dim=8).fit(model_input(8))


def test_knn_averages_over_neighbours():
    train, x = model_input(6), model_input(2, seed=1)
    squared = (x[:, None] - train[None]).square().mean((2, 3, 4))
    for k in (1, 3):
        model = models.build("knn", image_size=32, neighbours=k).fit(train)
        expected = squared.sort(1).values[:, :k].mean(1)
        torch.testing.assert_close(model.anomaly_score(x), expected)
    assert (models.build("knn", image_size=32).fit(train).anomaly_score(train) == 0).all()


def test_intensity_reads_both_signs():
    x = torch.linspace(-1, 1, 5).view(5, 1, 1, 1).expand(5, 1, 16, 16)
    score = {
        sign: models.build("intensity", image_size=16, sign=sign).fit(x).anomaly_score(x)
        for sign in ("bright", "dark", "both")
    }
    assert score["bright"].argsort().tolist() == score["dark"].argsort().tolist()[::-1]
    torch.testing.assert_close(score["both"], x[:, 0, 0, 0].abs())


def test_vae_kl_equals_the_closed_form():
    mu, log_var = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    posterior = torch.distributions.Normal(mu, (log_var / 2).exp())
    prior = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    expected = torch.distributions.kl_divergence(posterior, prior)
    torch.testing.assert_close(gaussian_kl(mu, log_var), expected)


def test_vae_sums_or_averages_the_kl_and_weighs_it(build):
    x = model_input(4)
    kl, loss = {}, {}
    for reduction in ("mean", "sum"):
        model = build("vae", image_size=32, kl_reduction=reduction, beta=2.0).eval()
        kl[reduction] = model.kl(x)
        draws = model.draw(x, torch.Generator().manual_seed(0))
        loss[reduction] = model.losses(x, **draws)["kl"]
    torch.testing.assert_close(kl["sum"], kl["mean"] * SMALL["latent_dim"])
    torch.testing.assert_close(loss["sum"], 2 * kl["sum"].mean())


def test_vae_samples_approach_the_mean_as_the_posterior_narrows(build):
    x = model_input(2)
    model = build("vae", image_size=32, samples=3).eval()
    assert isinstance(model, VAE)
    mean_map = Autoencoder.anomaly_map(model, x)
    assert not torch.allclose(model.anomaly_map(x), mean_map, atol=1e-5)
    with torch.no_grad():
        model.encoder.latent.bias[SMALL["latent_dim"] :] = -40.0  # log_var
    torch.testing.assert_close(model.anomaly_map(x), mean_map, atol=1e-6, rtol=1e-4)


def test_memae_with_one_slot_returns_a_constant(build):
    model = build("memae", image_size=32, slots=1, shrinkage=0.0).eval()
    x_hat = model.reconstruct(model_input(5))
    torch.testing.assert_close(x_hat, x_hat[:1].expand_as(x_hat))


def test_memae_has_finite_gradients_at_exact_zeros(build):
    model = build("memae", image_size=32)
    assert isinstance(model, MemAE)
    with torch.no_grad():
        model.memory.mul_(1e3)  # far apart: all weights but one shrink to exactly zero
    x = model_input(8)
    weights = model.address(model.encode(x))
    assert (weights == 0).any()
    torch.testing.assert_close(weights.sum(1), torch.ones(8))
    sum(model.losses(x).values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_ceae_erases_one_square_of_its_share():
    assert CeAESettings(image_size=64).side == 10
    model = CeAE(CeAESettings(image_size=64, hidden_dim=4))
    x = torch.rand(6, 1, 64, 64)
    corner = model.draw(x, torch.Generator().manual_seed(0))["corner"]
    erased = model.erase(x, corner)
    for image, holed, (row, column) in zip(x, erased, corner.tolist(), strict=True):
        expected = image.clone()
        expected[:, row : row + 10, column : column + 10] = -1
        assert torch.equal(holed, expected)
        assert (expected == -1).sum() == 100


@given(seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_ceae_squares_lie_inside(seed):
    model = CeAE(CeAESettings(image_size=16, hidden_dim=4, erased_share=0.2))
    x = torch.zeros(8, 1, 16, 16)
    erased = model.erase(x, model.draw(x, torch.Generator().manual_seed(seed))["corner"])
    assert ((erased == -1).sum((1, 2, 3)) == 49).all()


def test_constrained_ae_weighs_the_distance_of_codes(build):
    x, loss = model_input(4), {}
    for weight in (1.0, 3.0):
        model = build("constrained-ae", image_size=32, latent_weight=weight).eval()
        loss[weight] = model.losses(x)["latent"]
    z, z_again = model.encode(x), model.encode(model.reconstruct(x))
    torch.testing.assert_close(loss[1.0], (z - z_again).square().mean())
    torch.testing.assert_close(loss[3.0], 3 * loss[1.0])


def rate_step(model, x, seed=0):
    """Take one step of rate-ae without an optimiser; return its losses."""
    (phase,) = model.phases()
    losses = phase.losses(x, **model.draw(x, torch.Generator().manual_seed(seed)))
    phase.after({name: loss.item() for name, loss in losses.items()})
    return losses


def test_rate_ae_has_the_closed_form_of_the_rate(build):
    model, x = build("rate-ae", image_size=32).train(), model_input(16)
    assert isinstance(model, RateAE)
    rate_step(model, x)
    with torch.no_grad():
        eigenvalues = torch.linalg.eigvalsh(torch.cov(model.encode(x).double().T))
    expected = 0.5 * torch.log1p(eigenvalues).sum().item()
    assert model.training_rate() == pytest.approx(expected, rel=1e-4)
    many = model_input(400)
    with torch.no_grad():
        codes = model.eval().encode(many)
    assert model.rate_of(many) == pytest.approx(coding_rate(codes.double().numpy()), rel=1e-5)
    assert not model.training, "measuring leaves the mode as it was"


def test_rate_ae_averages_covariances_and_forgets_old_ones(build):
    model, parts = build("rate-ae", image_size=32, memory=0.5).train(), []
    for seed in range(3):
        x = model_input(8, seed=seed)
        with torch.no_grad():
            parts.append(torch.cov(model.encode(x).T))
        rate_step(model, x)
    expected = (parts[0] / 2 + parts[1] / 2) / 2 + parts[2] / 2
    torch.testing.assert_close(model.covariance, expected, rtol=1e-3, atol=1e-6)


def test_rate_ae_raises_its_multiplier_above_the_rate_and_drops_it_below(build):
    x, multiplier = model_input(16), {}
    for rate in (1e-3, 1e3):
        model = build("rate-ae", image_size=32, rate=rate).train()
        model.multiplier.fill_(1e-4)
        error = rate_step(model, x)["reconstruction"].item()
        step = 0.005 * error * (model.training_rate() / rate - 1)
        multiplier[rate] = (model.multiplier.item(), max(0.0, 1e-4 + step))
    for found, expected in multiplier.values():
        assert found == pytest.approx(expected, rel=1e-5)
    assert multiplier[1e-3][0] > 1e-4, "no cap and no start at zero needed"
    assert multiplier[1e3][0] == 0


def test_rate_ae_lets_the_rates_gradient_reach_the_encoder(build):
    model, x = build("rate-ae", image_size=32, latent_dim=12).train(), model_input(6)
    rate_step(model, x)
    model.multiplier.fill_(0.1)
    loss = model.losses(x, **model.draw(x, torch.Generator().manual_seed(0)))["rate"]
    (gradient,) = torch.autograd.grad(loss, model.encoder.latent.weight, retain_graph=True)
    assert torch.isfinite(gradient).all(), "6 images in 12 dimensions"
    # At the batch's own covariance it is the gradient of that covariance's rate.
    z = model.encode(x)
    own = 0.1 * coding_rate_from_covariance(torch.cov(z.T))
    torch.testing.assert_close(loss, own, rtol=1e-3, atol=1e-6)
    (expected,) = torch.autograd.grad(own, model.encoder.latent.weight)
    torch.testing.assert_close(gradient, expected, rtol=1e-2, atol=1e-5)


@pytest.mark.slow
def test_rate_ae_comes_near_the_rate_on_images_it_has_not_seen():
    options = {"image_size": 16, "latent_dim": 8, "hidden_dim": 16, "dual_step": 0.02}
    pixels, held_out = images(256, size=16), model_input(400, size=16, seed=1)
    found = {}
    for rate, epochs in ((1.0, 25), (100.0, 7)):
        model = models.build("rate-ae", rate=rate, **options)
        recipe = quick(epochs, batch_size=32, learning_rate=3e-3)
        training.fit(model, pixels, settings=recipe, device="cpu")
        found[rate] = (model.rate_of(held_out), model.multiplier.item())
    assert found[1.0][0] == pytest.approx(1.0, rel=0.15)
    assert found[1.0][1] > 0
    assert found[100.0][0] > 1.3, "the constraint had something to do"
    assert found[100.0][1] == 0


def test_rate_ae_measures_how_its_rate_carries_over(build):
    model, x = build("rate-ae", image_size=32, held_out=True).train(), model_input(16)
    rate_step(model, x)
    held, seen = model_input(10, seed=1), model_input(40, seed=2)
    model.watch(held, seen)
    assert model.training, "looking leaves the mode as it was"
    with torch.no_grad():
        new, old = (torch.cov(model.eval().encode(part).T) for part in (held, seen))
        few = torch.cov(model.encode(seen[torch.linspace(0, 39, 10).long()]).T)
    new, old, few = (coding_rate_from_covariance(c).item() for c in (new, old, few))
    ratio = new / few * old / model.training_rate()
    assert model.transfer.item() == pytest.approx(0.7 + 0.3 * ratio, rel=1e-3)
    before = model.multiplier.item()
    model.train()
    error = rate_step(model, x)["reconstruction"].item()
    excess = model.transfer.item() * model.training_rate() / model.settings.rate - 1
    assert model.multiplier.item() == pytest.approx(max(0, before + 0.005 * error * excess))


def test_rate_ae_watches_the_rate_behind_few_images_where_it_is_to_be_unbiased(build):
    options = {"image_size": 32, "held_out": True, "unbiased": True}
    model, x = build("rate-ae", **options).train(), model_input(16)
    rate_step(model, x)
    held, seen = model_input(60, seed=1), model_input(40, seed=2)
    model.watch(held, seen)
    with torch.no_grad():
        codes = model.eval().encode(held).double().numpy()
    rate = coding_rate_of_groups(codes, parts=20).value
    assert rate > coding_rate_from_covariance(np.cov(codes, rowvar=False)), "few say too little"
    expected = 0.7 + 0.3 * rate / model.training_rate()
    assert model.transfer.item() == pytest.approx(expected, rel=1e-3)

    few, compared = model_input(6, seed=1), build("rate-ae", image_size=32, held_out=True)
    compared.load_state_dict(model.state_dict())
    for one in (model, compared):  # six cannot say it: as without the option
        one.train().watch(few, seen)
    assert model.transfer.item() == pytest.approx(compared.transfer.item())


@pytest.mark.slow
def test_rate_ae_holds_its_rate_on_held_out_images_where_those_of_training_say_more():
    options = {"image_size": 16, "latent_dim": 8, "hidden_dim": 16, "dual_step": 0.02, "rate": 2.0}
    pixels, held, others = (
        images(12, size=16),
        images(300, size=16, seed=1),
        model_input(400, size=16, seed=2),
    )
    found = {}
    for watching in (False, True):
        model, rates = models.build("rate-ae", held_out=watching, **options), []

        def note(step, model=model, rates=rates):
            if step.epoch > 75 and step.epoch % 5 == 0:
                rates.append(model.rate_of(others))

        recipe = quick(150, batch_size=6, learning_rate=3e-3)
        training.Training([model], pixels, settings=recipe, seeds=[0], device="cpu", held=held).run(
            note
        )
        found[watching] = np.mean(rates)  # the multiplier swings around its goal
    assert found[False] < 1.7, "else there is nothing to mend"
    assert found[True] == pytest.approx(2.0, rel=0.1), found


def test_rate_ae_answers_an_excess_at_once_where_it_is_damped(build):
    model, x = build("rate-ae", image_size=32, damping=0.5, rate=0.01).train(), model_input(16)
    error = rate_step(model, x)["reconstruction"].item()
    excess = error * (model.training_rate() / 0.01 - 1)
    assert excess > 0
    assert model.multiplier.item() == pytest.approx(0.005 * excess, rel=1e-4)
    assert model.push.item() == pytest.approx(0.5 * excess, rel=1e-4)
    weight = model.multiplier.item() + model.push.item()
    with torch.no_grad():
        losses = model.losses(x, **model.draw(x, torch.Generator().manual_seed(0)))
        rate = coding_rate_from_covariance(model._seen)
    assert losses["rate"].item() == pytest.approx(weight * rate.item(), rel=1e-4)
    model.push.fill_(-1.0)
    assert model.losses(x, **model.draw(x, torch.Generator()))["rate"].item() == 0, "never below 0"


@pytest.mark.slow
def test_damping_stills_the_swing_of_the_rate():
    options = {"image_size": 16, "latent_dim": 8, "hidden_dim": 16, "dual_step": 0.1, "rate": 1.0}
    pixels, swing = images(64, size=16), {}
    for damping in (0.0, 1.0):
        model, rates = models.build("rate-ae", damping=damping, **options), []

        def note(step, model=model, rates=rates):
            if step.epoch > 20:
                rates.append(model.training_rate())

        recipe = quick(60, batch_size=16, learning_rate=3e-3)
        training.Training([model], pixels, settings=recipe, seeds=[0], device="cpu").run(note)
        swing[damping] = np.std(rates), np.mean(rates)
    assert swing[1.0][0] < swing[0.0][0] / 2, swing
    assert swing[1.0][1] == pytest.approx(1.0, rel=0.05), swing


def test_a_rate_for_held_out_images_needs_some():
    model = models.build("rate-ae", image_size=16, held_out=True)
    for held, count in ((None, 0), (images(1, size=16), 1)):
        with pytest.raises(DataError, match=rf"needs at least 2, got {count}: hold some out"):
            training.Training(
                [model], images(8, size=16), settings=quick(1), seeds=[0], device="cpu", held=held
            )


@pytest.mark.parametrize("held_out", [False, True])
def test_rate_ae_resumes_exactly(held_out):
    pixels, state = images(16, size=16), []
    options = {"image_size": 16, "latent_dim": 4, "hidden_dim": 8, "rate": 0.1}
    options |= {"held_out": held_out, "damping": 0.1 * held_out}
    held = images(6, size=16, seed=1)
    for stops in ((2,), (1, 2)):
        kept = None
        for epochs in stops:
            model = models.build("rate-ae", **options)
            run = training.Training(
                [model],
                pixels,
                settings=quick(epochs, batch_size=8),
                seeds=[0],
                device="cpu",
                held=held,
            )
            if kept:
                run.resume(*kept)
            run.run()
            kept = ({k: v.clone() for k, v in run.state().items()}, run.progress())
        state.append(model.state())
    assert state[0]["multiplier"] > 0
    assert ("transfer" in state[0]) == ("push" in state[0]) == held_out
    assert all(torch.equal(state[0][k], state[1][k]) for k in state[0])


def test_rate_ae_scores_with_noise_if_asked(build):
    x = model_input(2)
    plain = build("rate-ae", image_size=32).eval()
    noisy = build("rate-ae", image_size=32, samples=3).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            plain.anomaly_map(x), (x - plain.decode(plain.encode(x))).square().mean(1)
        )
        assert not torch.allclose(noisy.anomaly_map(x), plain.anomaly_map(x), atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_the_last_convolution_is_the_same_with_and_without_gradients(channels):
    _, output = doublings(channels)
    x = torch.randn(3, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = output(x)
    torch.testing.assert_close(plain, output(x), rtol=1e-5, atol=1e-6)
    assert plain.shape == (3, channels, 16, 16)


def test_nested_ae_truncates_each_image_at_its_own_width():
    assert widths_up_to(1) == (1,)
    assert widths_up_to(12) == (1, 2, 4, 8, 12)
    z = torch.arange(1.0, 13).view(3, 4)
    expected = torch.tensor([[1.0, 0, 0, 0], [5, 6, 0, 0], [9, 10, 11, 12]])
    assert torch.equal(truncate(z, torch.tensor([1, 2, 4])), expected)
    model = models.build("nested-ae", image_size=16, latent_dim=12, hidden_dim=4)
    kept = model.draw(torch.zeros(400, 1), torch.Generator().manual_seed(0))["kept"]
    assert sorted(set(kept.tolist())) == [1, 2, 4, 8, 12]
    assert kept.bincount()[[1, 2, 4, 8, 12]].min() > 50


def test_nested_ae_is_read_at_any_width(build):
    model, x = build("nested-ae", image_size=32, latent_dim=8).eval(), model_input(3)
    assert isinstance(model, NestedAE)
    with torch.no_grad():
        full = model.encode(x)
        for width in (1, 3, 8):
            read = model.at(width)
            assert (read.encode(x)[:, width:] == 0).all()
            torch.testing.assert_close(read.encode(x)[:, :width], full[:, :width])
            torch.testing.assert_close(read(x), model.decode(truncate(full, width)))
        again = build("nested-ae", image_size=32, latent_dim=8, read_dim=3).eval()
        torch.testing.assert_close(again.anomaly_map(x), model.at(3).anomaly_map(x))
    assert model.read_dim == 8, "reading elsewhere changes nothing here"
    assert model.at(1).encoder is model.encoder
    for wrong, message in ((9, "read_dim must be 1 to latent_dim = 8"), (0, "at least 1")):
        with pytest.raises(SettingsError, match=message):
            model.at(wrong)


@pytest.mark.slow
def test_nested_ae_rebuilds_better_with_more_coordinates():
    model = models.build("nested-ae", image_size=16, latent_dim=4, hidden_dim=16)
    settings = quick(20, batch_size=32)
    training.fit(model, images(256, size=16), settings=settings, device="cpu")
    held_out = model_input(100, size=16, seed=1)
    with torch.no_grad():
        error = [model.at(d).anomaly_score(held_out).mean().item() for d in (1, 2, 4)]
    assert error[2] < error[0], "blobs have two coordinates: one cannot hold them"
    assert error[1] < error[0]
    assert error[2] <= 1.02 * error[1]


def test_nested_ae_balances_widths_by_what_they_reach():
    model = models.build("nested-ae", image_size=16, latent_dim=4, hidden_dim=8, balance=True)
    model.errors = torch.tensor([8.0, 4.0, 2.0])  # of the widths 1, 2 and 4
    kept, errors = torch.tensor([1, 1, 4]), torch.tensor([8.0, 18.0, 2.0])
    weights = model._weights(errors, kept)
    # A tenth of the way to the batch's mean, 13, at width 1; width 2 was not seen.
    assert model.errors.tolist() == pytest.approx([8.5, 4.0, 2.0])
    assert weights.tolist() == pytest.approx([2 / 8.5, 2 / 8.5, 1.0])
    plain = models.build("nested-ae", image_size=16, latent_dim=4, hidden_dim=8)
    assert set(model.state()) - set(plain.state()) == {"errors"}


@pytest.mark.parametrize(
    "name", [n for n in models.MODELS if models.model_class(n).default_options]
)
def test_what_is_usual_for_a_method_is_among_its_settings(name):
    cls = models.model_class(name)
    used = cls.Settings.from_mapping(dict(cls.default_options)).to_dict()
    assert {k: used[k] for k in cls.default_options} == cls.default_options


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_ae_u_recovers_a_planted_noise_level(beta):
    sigma = torch.full((16, 16), 0.05)
    sigma[:, 8:] = 0.2
    noise = torch.randn(256, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    pixels = 0.5 + noise * sigma / 2  # [0, 1] is half as wide as [-1, 1]
    model = models.build("ae-u", image_size=16, latent_dim=1, hidden_dim=8, beta=beta)
    training.fit(model, pixels, settings=quick(40, batch_size=32, learning_rate=1e-2), device="cpu")
    with torch.no_grad():
        x_hat, log_var = model.decode_both(model.encode(2 * pixels[:64] - 1))
    found = (log_var / 2).exp().mean(0)[0]
    inner = [found[4:12, 2:6].mean(), found[4:12, 10:14].mean()]
    np.testing.assert_allclose(inner, [0.05, 0.2], rtol=0.25)
    assert x_hat.abs().mean() < 0.05


def test_ae_u_weights_a_pixel_by_a_power_of_its_variance():
    """A pixel's gradient by x_hat is (x_hat - x) var^(beta - 1); by log_var it keeps its zero."""
    x = torch.zeros(1, 1, 16, 16)
    x_hat = torch.full_like(x, 0.1).requires_grad_()
    log_var = torch.linspace(-12, 0, 256).reshape(x.shape).requires_grad_()
    for beta in (0.0, 0.5, 1.0):
        model = models.build("ae-u", image_size=16, beta=beta, **SMALL).eval()
        model.decode_both = lambda z: (x_hat, log_var)
        loss = torch.stack(list(model.losses(x).values())).sum()
        by_mean, by_log_var = torch.autograd.grad(loss * x.numel(), (x_hat, log_var))
        var = log_var.detach().exp()
        torch.testing.assert_close(by_mean, 2 * 0.1 * var ** (beta - 1))
        torch.testing.assert_close(by_log_var, var**beta * (1 - 0.1**2 / var))
    for beta in (-0.1, 1.1, float("nan")):
        with pytest.raises(SettingsError, match=r"beta must be in \[0, 1\], got"):
            models.build("ae-u", beta=beta)


@pytest.mark.parametrize(("options", "levels"), [({}, 12**-0.5), ({"noise": 2.0}, 2.0)])
def test_ae_u_never_trusts_a_pixel_beyond_its_noise(build, options, levels):
    """By default that of rounding to 256 levels."""
    model = build("ae-u", image_size=32, **options).eval()
    assert isinstance(model, AEU)
    with torch.no_grad():
        model.decoder.output.weight.mul_(1e6)
        log_var = model.decode_both(model.encode(model_input(2)))[1]
    assert log_var.min() == pytest.approx(2 * math.log(2 * levels / 255))
    with pytest.raises(SettingsError, match=r"noise must be in \(0, 255\), got 0"):
        build("ae-u", noise=0.0)


def test_members_of_ae_u_are_trained_as_each_alone_and_their_maps_averaged():
    options = {"image_size": 16, "clip": 1.0, **SMALL}
    several = models.build("ae-u", members=3, **options)
    assert set(models.build("ae-u", **options).state()) < set(several.state())
    alone = [models.build("ae-u", **options) for _ in range(3)]
    for one, member in zip(alone, several.members, strict=True):
        own = {k: v for k, v in member.state_dict().items() if not k.startswith("others.")}
        one.load_state_dict(own)
    starts = [m.encoder.latent.weight.clone() for m in several.members]
    assert not torch.equal(starts[0], starts[1]), "each has a start of its own"
    assert not torch.equal(starts[1], starts[2])

    pixels, recipe = images(32, size=16), quick(2)
    history = training.fit(several, pixels, settings=recipe, device="cpu")
    each = [training.fit(one, pixels, settings=recipe, device="cpu") for one in alone]
    x = model_input(4, size=16)
    with torch.no_grad():
        maps = torch.stack([one.anomaly_map(x) for one in alone])
        torch.testing.assert_close(several.anomaly_map(x), maps.mean(0), rtol=1e-3, atol=1e-4)
        rebuilt = torch.stack([one.reconstruct(x) for one in alone]).mean(0)
        torch.testing.assert_close(several.reconstruct(x), rebuilt, rtol=1e-3, atol=1e-4)
    assert several.encode(x).shape == (4, 3 * SMALL["latent_dim"])
    for epoch, of_each in zip(history, zip(*each, strict=True), strict=True):
        assert epoch == pytest.approx(
            {k: np.mean([losses[k] for losses in of_each]) for k in epoch}, rel=1e-3
        )
    with pytest.raises(SettingsError, match="members must be at least 1, got 0"):
        models.build("ae-u", members=0)


def test_dae_noise_has_the_stated_strength_and_stays_on_the_foreground(build):
    model = build("dae", image_size=32, noise_std=0.2)
    assert isinstance(model, DAE)
    x = model_input(64)
    draws = model.draw(x, torch.Generator().manual_seed(0))
    added = model.add_noise(x, **draws) - x
    background = x == x.amin((1, 2, 3), keepdim=True)
    assert background.any()
    assert (added[background] == 0).all()
    assert abs(added[~background].mean()) < 0.03, "no shift"
    # 2 * 0.2 at the grid's points; bilinear averages between them have less.
    assert 0.15 < added[~background].std() < 0.4


def test_dae_offers_the_authors_form_of_noise(build):
    x = model_input(4)
    ours = build("dae", image_size=32, foreground_only=False)
    theirs = build("dae", image_size=32, foreground_only=False, noise_shift=-1.0)
    draws = ours.draw(x, torch.Generator().manual_seed(0))
    torch.testing.assert_close(theirs.add_noise(x, **draws), ours.add_noise(x, **draws) - 1)


def test_dae_rolls_its_noise(build):
    model, x = build("dae", image_size=32, foreground_only=False), torch.zeros(2, 1, 32, 32)
    noise = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    still = model.add_noise(x, noise, torch.tensor([0, 0]))
    rolled = model.add_noise(x, noise, torch.tensor([3, 30]))
    assert torch.equal(rolled, still.roll((3, 30), (2, 3)))


def test_dae_has_the_stated_size():
    def count(**options):
        return sum(p.numel() for p in models.build("dae", **options).parameters())

    assert 1e6 < count() < 2e6
    assert 30e6 < count(width=64) < 32e6


def test_dae_decodes_what_it_encodes(build):
    model, x = build("dae", image_size=32).eval(), model_input(2)
    z = model.encode(x)
    assert z.shape[1] > x[0].numel(), "no bottleneck"
    torch.testing.assert_close(model.decode(z), model(x))


def test_ganomaly_scores_by_the_codes(build):
    model, x = build("ganomaly", image_size=32).eval(), model_input(3)
    assert isinstance(model, GANomaly)
    z_hat = model.second_encoder(model.reconstruct(x))
    torch.testing.assert_close(model.anomaly_score(x), (z_hat - model.encode(x)).square().mean(1))


def test_ganomaly_redraws_a_vanished_adversary_from_the_steps_seed(build):
    x, drawn = model_input(8), []
    for seed in (1, 1, 2):
        model = build("ganomaly", image_size=32)
        adversary = model.phases()[1]
        before = model.adversary.features[0][0].weight.clone()
        adversary.losses(x, redraw_seed=torch.tensor([seed]))
        adversary.after({"adversary loss": 0.5})
        assert torch.equal(model.adversary.features[0][0].weight, before)
        state = torch.get_rng_state()
        adversary.after({"adversary loss": 1e-6})
        assert torch.equal(torch.get_rng_state(), state), "the global state is nobody's"
        drawn.append(model.adversary.features[0][0].weight.clone())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert 0.01 < drawn[0].std() < 0.03


def test_ganomaly_trains_each_side_on_its_own_losses(build):
    model, x = build("ganomaly", image_size=32), model_input(8)
    generator, adversary = model.phases()
    draws = model.draw(x, torch.Generator().manual_seed(0))
    sum(adversary.losses(x, **draws).values()).backward()
    assert all(p.grad is None for p in generator.parameters)
    at_chance = 0.5 * (math.log(2) + math.log(2))
    assert adversary.losses(x, **draws)["loss"].item() == pytest.approx(at_chance, abs=0.2)


# ---------------------------------------------------------------- ae-perceptual's files


def perceptual(path, **options):
    settings = {"image_size": 32, **SMALL, "network": f"{__name__}:tiny_network_grey", "layer": "0"}
    return models.build("ae-perceptual", weights=str(path), **{**settings, **options})


def test_perceptual_map_is_the_relative_error_of_normalised_features(tmp_path):
    network, path = tiny_network_grey(), tmp_path / "w.pt"
    torch.save(network.state_dict(), path)
    mean, var = torch.rand(4), torch.rand(4) + 0.5
    torch.save({"mean": mean, "var": var}, tmp_path / "s.pt")
    model = perceptual(path, statistics=str(tmp_path / "s.pt")).eval()
    x = model_input(3)
    with torch.no_grad():
        # Before the ReLU, which works in place.
        f, f_hat = ((network[0](v) - mean.view(-1, 1, 1)) / var.view(-1, 1, 1)
                    for v in (x, model.reconstruct(x)))  # fmt: skip
        relative = (f_hat - f).abs().mean((1, 2, 3)) / f.abs().mean((1, 2, 3))
        torch.testing.assert_close(model.losses(x)["perceptual"], relative.mean())


def test_perceptual_model_loads_without_its_files(tmp_path):
    path = tmp_path / "w.pt"
    torch.save(tiny_network_grey().state_dict(), path)
    torch.save({"0": (torch.rand(4), torch.ones(4))}, tmp_path / "s.pt")
    options = {"statistics": str(tmp_path / "s.pt")}
    model, x = perceptual(path, **options).eval(), model_input(2)
    path.unlink()
    again = perceptual(path, seed=7, **options)
    with pytest.raises(SettingsError, match="no file"):
        again.phases()
    with pytest.raises(SettingsError, match="no file"):
        again.anomaly_map(x)
    again.load_state(load(save(model.state())))
    assert isinstance(again, PerceptualAE)
    torch.testing.assert_close(again.eval().anomaly_map(x), model.anomaly_map(x))


def test_perceptual_network_stays_fixed(tmp_path):
    path = tmp_path / "w.pt"
    torch.save(tiny_network_grey().state_dict(), path)
    model = perceptual(path)
    before = {k: v.clone() for k, v in model.network.state_dict().items()}
    training.fit(model, images(16), settings=quick(1), device="cpu")
    assert all(torch.equal(before[k], v) for k, v in model.network.state_dict().items())
    assert not model.train().network.training


@pytest.mark.parametrize(
    ("weights", "statistics", "message"),
    [
        ({"0.weight": torch.rand(4, 1, 3, 3)}, None, "lacks 3 tensors"),
        ({"0.weight": torch.rand(4, 2, 3, 3)}, None, "of another network"),
        (torch.rand(3), None, "must hold named tensors"),
        (b"not a file of tensors", None, "cannot be read"),
        ("good", {"other": torch.rand(4)}, "must hold mean and var"),
        ("good", {"mean": torch.zeros(4), "var": torch.zeros(4)}, "must hold variances|above 0"),
    ],
)
def test_perceptual_files_are_checked(tmp_path, weights, statistics, message):
    path, options = tmp_path / "w.pt", {}
    if isinstance(weights, bytes):
        path.write_bytes(weights)
    else:
        torch.save(tiny_network_grey().state_dict() if weights == "good" else weights, path)
    if statistics:
        torch.save(statistics, tmp_path / "s.pt")
        options = {"statistics": str(tmp_path / "s.pt")}
    with pytest.raises(SettingsError, match=message):
        perceptual(path, **options)


def test_vgg19_has_the_layers_of_the_common_weight_files(tmp_path):
    full = VGG19(36)
    assert full.names[22] == "r42"
    assert full.features[34].weight.shape == (512, 512, 3, 3)
    kept = VGG19(3)
    extra = {**kept.state_dict(), "classifier.0.weight": torch.rand(2)}
    save_file(extra, tmp_path / "vgg.safetensors")
    torch.save({"r12": (torch.zeros(64), torch.ones(64))}, tmp_path / "s.pt")
    model = models.build(
        "ae-perceptual", image_size=32, **SMALL, layer="features.3",
        weights=str(tmp_path / "vgg.safetensors"), statistics=str(tmp_path / "s.pt"),
    )  # fmt: skip
    assert torch.equal(model.network.features[2].weight, kept.features[2].weight)
    assert model.eval().anomaly_map(model_input(2)).shape == (2, 32, 32)


# ---------------------------------------------------------------- on real images


@pytest.mark.slow
@pytest.mark.real_data
def test_ae_u_beats_the_mean_image_on_chest_radiographs(real_data: Path):
    """A minute of training; it learns its variances late, and is at chance after 8 epochs."""
    from sklearn.metrics import roc_auc_score

    data = np.load(real_data / "kermany_cxr" / "arrays_64.npz")
    train, test = (torch.from_numpy(data[k])[:, None] for k in ("train", "test"))
    auroc = {}
    for method in ("ae-u", "mean-image"):
        model = models.build(method, latent_dim=8)
        training.fit(model, train, settings=quick(40, batch_size=64, precision="auto"))
        x = training.to_model_input(test).to(next(iter(model.state().values())).device)
        with torch.no_grad():
            auroc[method] = roc_auc_score(data["test_label"], model.anomaly_score(x).cpu())
    assert auroc["ae-u"] > auroc["mean-image"] + 0.05
