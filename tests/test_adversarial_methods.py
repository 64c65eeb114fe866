"""Known truths of the methods with an adversary: AnoGAN, f-AnoGAN, AnoVAEGAN, constrained AAE."""

import hashlib

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from normalis import AnomalyDetector, models, scorers
from normalis.engines.export import trace
from normalis.errors import SettingsError
from normalis.models.adversarial import Critic, unrecorded
from normalis.models.base import ModelSettings
from normalis.models.inputs import to_model_input
from normalis.models.vae import VAE
from normalis.report.charts import training_curve
from normalis.scorers.base import evaluating
from normalis.training.loop import Training, fit
from normalis.training.settings import TrainingSettings
from small_runs import anomalies, detector, phantoms

SMALL = {"image_size": 16, "latent_dim": 3, "hidden_dim": 8, "critic_width": 4}
AGAINST = ("anogan", "f-anogan", "anovaegan", "constrained-aae")


def blobs(n, *, size=16, seed=0):
    """Return discs with soft edges at random places, uint8."""
    generator = torch.Generator().manual_seed(seed)
    line = torch.linspace(-1, 1, size)
    cy, cx = 0.8 * (torch.rand(2, n, 1, 1, generator=generator) - 0.5)
    distance = ((line[:, None] - cy) ** 2 + (line - cx) ** 2).sqrt()
    return (255 * torch.sigmoid((0.45 - distance) * 12)).to(torch.uint8)[:, None]


def squares(n, *, size=16, seed=0):
    """Return squares of the discs' area at places of the same kind, uint8."""
    generator = torch.Generator().manual_seed(seed)
    line = torch.linspace(-1, 1, size)
    cy, cx = 0.8 * (torch.rand(2, n, 1, 1, generator=generator) - 0.5)
    distance = torch.maximum((line[:, None] - cy).abs(), (line - cx).abs().expand(n, size, size))
    return (255 * torch.sigmoid((0.4 - distance) * 12)).to(torch.uint8)[:, None]


def build(method, seed=0, **options):
    return models.build(method, seed=seed, **{**SMALL, **options})


def trained(model, pixels=None, epochs=3, batch_size=8, **given):
    settings = TrainingSettings(
        epochs=epochs, precision="float32", batch_size=batch_size, recipe="fast", **given
    )
    fit(model, blobs(16) if pixels is None else pixels, settings=settings, device="cpu")
    return model


def digest(*modules):
    """Return what weights and statistics are, to the last bit."""
    found = hashlib.sha256()
    for module in modules:
        for name, value in module.state_dict().items():
            found.update(name.encode() + value.contiguous().numpy().tobytes())
    return found.hexdigest()


def orthonormal(rows, columns, seed=0):
    drawn = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(drawn)[0]


class Linear(nn.Module):
    """z -> W z as an image, W (S * S, d)."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, z):
        size = round(len(self.weight) ** 0.5)
        return (z @ self.weight.T).unflatten(1, (1, size, size))


class LinearBack(nn.Module):
    """An image -> V x, V (d, S * S)."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return x.flatten(1) @ self.weight.T


# ---------------------------------------------------------------- what they share


def test_a_critic_judges_each_image_by_itself():
    critic = Critic(ModelSettings(image_size=32), 4).train()
    x = torch.rand(5, 1, 32, 32)
    together, alone = critic(x), torch.cat([critic(v[None]) for v in x])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    assert critic.features(x).shape == (5, 16 * 2 * 2)


def test_a_pass_that_is_not_recorded_uses_the_batch_and_leaves_the_statistics():
    layer = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).train()
    x = torch.rand(6, 3)
    before = digest(layer)
    with unrecorded(layer):
        quiet = layer(x)
    assert digest(layer) == before
    assert torch.equal(layer(x), quiet)
    assert digest(layer) != before


@pytest.mark.parametrize("method", AGAINST)
def test_each_side_follows_its_own_losses_alone(method):
    model = build(method).train()
    x = to_model_input(blobs(8))
    draws = model.draw(x, torch.Generator().manual_seed(0))
    for phase in model.phases():
        model.zero_grad(set_to_none=True)
        sum(phase.losses(x, **draws).values()).backward()
        reached = {id(p) for p in model.parameters() if p.grad is not None}
        assert reached == {id(p) for p in phase.parameters}, phase.name


@pytest.mark.parametrize("method", AGAINST)
def test_a_resumed_training_is_the_uninterrupted_one(method):
    settings = TrainingSettings(epochs=4, batch_size=8, precision="float32", recipe="fast")

    def new():
        return Training([build(method)], blobs(16), settings=settings, seeds=[0], device="cpu")

    class Stop(Exception):
        pass

    def stop(progress):
        if progress.epoch == 3:
            raise Stop

    whole, first, second = new(), new(), new()
    whole.run()
    with pytest.raises(Stop):
        first.run(stop)
    second.resume({k: v.clone() for k, v in first.state().items()}, first.progress())
    second.run()
    assert digest(whole.members[0].model) == digest(second.members[0].model)
    assert whole.history == second.history


@pytest.mark.parametrize("method", AGAINST)
def test_a_detector_of_each_is_saved_loaded_and_reported(method, tmp_path):
    options = {"critic_width": 4, **({"search_steps": 5} if method == "anogan" else {})}
    fitted = detector(method=method, method_options=options, epochs=4).fit(phantoms())
    fitted.save(tmp_path / "run")
    again = AnomalyDetector.load(tmp_path / "run")
    new = anomalies(5)
    score = again.anomaly_score(new)
    assert np.isfinite(score).all()
    np.testing.assert_array_equal(score, fitted.anomaly_score(new))
    np.testing.assert_array_equal(again.anomaly_map(new), fitted.anomaly_map(new))
    np.testing.assert_allclose(again.anomaly_score(new[2:3]), score[2:3], rtol=1e-4)
    curve = training_curve(again.history_)  # of losses that are not there in every epoch
    assert all(name in curve for epoch in again.history_ for name in epoch)


# ---------------------------------------------------------------- f-AnoGAN


def test_f_anogans_encoder_leaves_generator_and_critic_as_they_are():
    model = build("f-anogan").train()
    x = to_model_input(blobs(8))
    before, encoder = digest(model.generator, model.critic), digest(model.encoder)
    (phase,) = [p for p in model.phases() if p.name == ""]
    optimiser = torch.optim.Adam(phase.parameters, 1e-2)
    for _ in range(3):
        sum(phase.losses(x).values()).backward()
        optimiser.step()
    assert digest(model.generator, model.critic) == before
    assert digest(model.encoder) != encoder
    assert model.generator.training
    assert all(p.requires_grad for p in model.parameters())


def test_f_anogans_stages_follow_each_other():
    model = build("f-anogan")
    settings = TrainingSettings(epochs=5, batch_size=8, precision="float32")
    training = Training([model], blobs(16), settings=settings, seeds=[0], device="cpu")
    seen = []
    training.run(
        lambda _: seen.append((digest(model.generator, model.critic), digest(model.encoder)))
    )
    adversaries, encoders = zip(*seen, strict=True)
    assert len(set(adversaries)) == 3, "they hold still after three of five epochs"
    assert encoders[0] == encoders[2]
    assert len(set(encoders)) == 3
    names = [set(epoch) for epoch in training.history]
    assert names[2] == {"critic loss", "critic penalty", "generator loss"}
    assert names[3] == {"reconstruction", "features"}


def test_a_linear_f_anogan_without_features_is_the_pca_residual():
    basis = orthonormal(16 * 16, 3)
    model = build("f-anogan", kappa=0.0, bound="none", output="linear").eval()
    model.generator, model.encoder = Linear(basis), LinearBack(basis.T)
    x = to_model_input(blobs(6))
    flat = x.flatten(1)
    rest = flat - flat @ basis @ basis.T
    with torch.no_grad():
        torch.testing.assert_close(model.anomaly_score(x), rest.square().mean(1))
        torch.testing.assert_close(model.anomaly_map(x).flatten(1), rest.abs())


def test_f_anogans_score_is_the_error_of_image_and_features():
    model = build("f-anogan", kappa=0.5).eval()
    x = to_model_input(blobs(4))
    with torch.no_grad():
        x_hat = model.reconstruct(x)
        f, f_hat = model.critic.features(x), model.critic.features(x_hat)
        expected = (x - x_hat).square().flatten(1).mean(1) + 0.5 * (f - f_hat).square().mean(1)
        torch.testing.assert_close(model.anomaly_score(x), expected)
        assert x_hat.abs().max() <= 1
        free = build("f-anogan", bound="none").eval().encode(x)
        torch.testing.assert_close(model.encode(x), free.tanh())


@pytest.mark.parametrize(
    ("encoder_loss", "terms"),
    [("izi_f", {"reconstruction", "features"}), ("izi", {"reconstruction"}), ("ziz", {"latent"})],
)
def test_f_anogans_encoder_is_trained_as_asked(encoder_loss, terms):
    model = build("f-anogan", encoder_loss=encoder_loss).train()
    x = to_model_input(blobs(8))
    draws = model.draw(x, torch.Generator().manual_seed(0))
    found = model.losses(x, **draws)
    assert set(found) == terms
    if encoder_loss == "ziz":
        model.generator.eval()
        with torch.no_grad():
            again = (model.encode(model.decode(draws["noise"])) - draws["noise"]).square().mean()
        torch.testing.assert_close(found["latent"].detach(), again)


@pytest.mark.parametrize(("method", "name"), [
    ("anogan", "adversarial_rate"), ("f-anogan", "adversarial_rate"), ("anogan", "step_size"),
])  # fmt: skip
def test_a_generator_needs_a_rate(method, name):
    with pytest.raises(SettingsError, match=f"{name} must be above 0, got 0.0"):
        build(method, **{name: 0.0})


@pytest.mark.slow
def test_f_anogan_rebuilds_discs_better_than_squares():
    model = build("f-anogan", latent_dim=4, hidden_dim=64, critic_width=8)
    trained(model, blobs(256), epochs=60, batch_size=32, learning_rate=4e-3)
    with torch.no_grad():
        new, other = (to_model_input(f(64, seed=1)) for f in (blobs, squares))
        error, worse = (model.anomaly_map(v).flatten(1).mean(1) for v in (new, other))
        mean = to_model_input(blobs(256)).mean(0)
    assert error.mean() < worse.mean()
    assert error.mean() < (new - mean).abs().mean(), "better than the mean image"


# ---------------------------------------------------------------- AnoVAEGAN


class AbsoluteVAE(VAE):
    """A `vae` with the absolute error."""

    def error(self, x, x_hat):
        return (x_hat.float() - x).abs()


def vae_like(model):
    s = model.settings
    other = AbsoluteVAE(
        VAE.Settings(
            image_size=16, latent_dim=3, hidden_dim=8, beta=s.beta, kl_reduction=s.kl_reduction
        )
    )
    other.load_state({k: v for k, v in model.state().items() if not k.startswith("critic")})
    return other


def test_anovaegan_without_a_critic_is_a_vae_with_the_absolute_error():
    model = build("anovaegan", adversarial_rate=0.0)
    other = vae_like(model)
    assert digest(trained(model)) == digest(trained(other))


def test_anovaegans_first_phase_is_that_vae_bit_for_bit():
    model = build("anovaegan")
    model.load_state(model.state())  # both in the layout of the loop
    other = vae_like(model).train()
    x = to_model_input(blobs(8))
    draws = model.draw(x, torch.Generator().manual_seed(0))
    found = []
    for one in (model.train(), other):
        losses = one.phases()[0].losses(x, **draws)
        sum(losses.values()).backward()
        named = [p.grad for n, p in one.named_parameters() if not n.startswith("critic")]
        found.append([*losses.values(), *named])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_anovaegan_is_read_by_its_absolute_error():
    model, x = build("anovaegan").eval(), to_model_input(blobs(3))
    with torch.no_grad():
        expected = (x - model.reconstruct(x)).abs()[:, 0]
        assert torch.equal(model.anomaly_map(x), expected)


def test_anovaegans_bound_is_its_own_loss():
    """So that `scorer=elbo` and `scorer=restoration` hold absolute errors against it as well."""
    model, x = build("anovaegan").eval(), to_model_input(blobs(4))
    with torch.no_grad():
        losses = model.losses(x, noise=torch.zeros(4, 3))
        found = model.negative_elbo(x).mean() / x[0].numel()
    torch.testing.assert_close(found, sum(losses.values()))


def test_anovaegans_passes_for_the_critic_leave_the_statistics():
    model = build("anovaegan").train()
    x = to_model_input(blobs(8))
    draws = model.draw(x, torch.Generator().manual_seed(0))
    before = digest(model.encoder, model.decoder)
    for phase in model.phases()[1:]:
        phase.losses(x, **draws)
    assert digest(model.encoder, model.decoder) == before


def test_anovaegans_critic_joins_for_the_last_part():
    settings = TrainingSettings(epochs=5, batch_size=8, precision="float32")
    training = Training([build("anovaegan")], blobs(16), settings=settings, seeds=[0], device="cpu")
    training.run()
    assert ["critic loss" in epoch for epoch in training.history] == [False] * 3 + [True] * 2
    assert all("reconstruction" in epoch for epoch in training.history)


# ---------------------------------------------------------------- constrained AAE


def linear_aae(encoder, decoder, **options):
    model = build("constrained-aae", **options).train()
    model.encoder, model.decoder = encoder, decoder
    return model


def test_the_codes_agree_where_the_decoder_inverts_the_encoder_from_the_right():
    basis = orthonormal(16 * 16, 3)
    model, x = linear_aae(LinearBack(basis.T), Linear(basis)), to_model_input(blobs(6))
    losses = model.losses(x)
    assert losses["latent"].item() == pytest.approx(0, abs=1e-8)
    rest = x.flatten(1) - x.flatten(1) @ basis @ basis.T
    torch.testing.assert_close(losses["reconstruction"], 0.5 * rest.norm(dim=1).mean())


def test_codes_that_follow_the_prior_are_left_in_peace():
    """The critic's slopes fall as one over the root of the number of codes, the encoder's too."""
    sizes = []
    for n in (1_000, 100_000):
        model = linear_aae(nn.Flatten(), None, penalty=0.0)
        generator = torch.Generator().manual_seed(0)
        codes, prior = torch.randn(2, n, 3, generator=generator)
        mix = torch.rand(n, generator=generator)
        model.critic_losses(codes, prior=prior, mix=mix)["loss"].backward()
        slopes = [p.grad.flatten() for p in list(model.critic.parameters())[:-1]]
        sizes.append(torch.cat(slopes).norm().item())
    assert sizes[1] < 0.03
    assert sizes[1] < 0.3 * sizes[0]


def test_the_constrained_aae_without_an_adversary_has_one_phase():
    model = build("constrained-aae", adversarial_rate=0.0)
    assert [p.name for p in model.phases()] == [""]
    assert not hasattr(model, "critic")
    assert model.draw(torch.zeros(2, 1, 16, 16), torch.Generator()) == {}


def sliced_distance(codes, directions=64):
    """Return the mean Wasserstein distance of projected codes (n, d) to N(0, 1)."""
    generator = torch.Generator().manual_seed(0)
    ways = F.normalize(torch.randn(codes.shape[1], directions, generator=generator), dim=0)
    shares = (torch.arange(len(codes)) + 0.5) / len(codes)
    normal = torch.special.ndtri(shares)[:, None]
    return ((codes @ ways).sort(0).values - normal).abs().mean().item()


@pytest.mark.slow
def test_the_adversary_brings_codes_of_new_images_nearer_to_the_prior():
    """Codes that start two deviations off stay there without one."""
    found = {}
    for rate in (0.0, 0.1):
        model = build("constrained-aae", adversarial_rate=rate, hidden_dim=64, critic_width=64)
        with torch.no_grad():
            model.encoder.latent.bias += 2.0
        trained(model, blobs(256), epochs=40, batch_size=32, learning_rate=4e-3)
        with torch.no_grad():
            found[rate] = sliced_distance(model.encode(to_model_input(blobs(200, seed=1))))
    assert found[0.1] < 0.5 * found[0.0], found


# ---------------------------------------------------------------- AnoGAN


def linear_anogan(**options):
    """Return an AnoGAN that generates W z with orthonormal W, read without features."""
    usual = {"output": "linear", "feature_weight": 0.0, "residual": "l2"}
    model = build("anogan", **{**usual, "search_steps": 300, "step_size": 0.3, **options}).eval()
    basis = orthonormal(16 * 16, 3)
    model.generator = Linear(basis)
    return model, basis


def test_a_linear_anogan_is_the_pca_residual():
    model, basis = linear_anogan()
    x = to_model_input(blobs(6))
    rest = x.flatten(1) - x.flatten(1) @ basis @ basis.T
    z, score = model.search(x)
    torch.testing.assert_close(score, rest.square().mean(1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(z, x.flatten(1) @ basis, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("residual", ["l1", "l2"])
def test_what_an_anogan_generates_it_finds_again(residual):
    model, _ = linear_anogan(residual=residual, feature_weight=0.1)
    drawn = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        x = model.decode(drawn)
    assert model.anomaly_score(x).max() < 0.02 * model.anomaly_score(x + 1).min()
    assert model.anomaly_map(x).max() < 0.02


def test_an_anogan_scores_by_image_and_features():
    model = build("anogan", search_steps=3, feature_weight=0.25).eval()
    x = to_model_input(blobs(4))
    score, anomaly_map = model.score_and_map(x)
    with torch.no_grad():
        x_hat = model.reconstruct(x)
        f, f_hat = model.critic.features(x), model.critic.features(x_hat)
    own, features = (x - x_hat).abs().flatten(1).mean(1), (f - f_hat).abs().mean(1)
    torch.testing.assert_close(score, 0.75 * own + 0.25 * features)
    torch.testing.assert_close(anomaly_map.detach(), (x - x_hat).abs()[:, 0])
    assert not score.requires_grad


def test_an_anogans_score_does_not_depend_on_the_batch():
    model = trained(build("anogan", search_steps=60))
    x = to_model_input(blobs(6, seed=3))
    score = model.anomaly_score(x)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(model.anomaly_score(x[order]), score[order], rtol=1e-4, atol=1e-6)
    alone = torch.cat([model.anomaly_score(v[None]) for v in x])
    torch.testing.assert_close(alone, score, rtol=1e-4, atol=1e-6)


def test_an_anogan_is_read_where_nobody_wants_gradients():
    model, x = build("anogan", search_steps=5), to_model_input(blobs(3))
    with evaluating(model):
        expected = model.anomaly_score(x)
    with torch.inference_mode():
        found, _ = scorers.build("native").read(model.train(), x.clone())
    assert torch.equal(found.clone(), expected)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_more_starts_never_find_a_worse_image():
    few, many = (build("anogan", search_steps=8, starts=n).eval() for n in (1, 4))
    x = to_model_input(blobs(6))
    one, best = few.anomaly_score(x), many.anomaly_score(x)
    assert (best <= one).all()
    assert (best < one).any()


def test_more_steps_come_nearer():
    x = to_model_input(blobs(6))
    scores = [build("anogan", search_steps=n).eval().anomaly_score(x).mean() for n in (1, 30, 150)]
    assert scores[0] > scores[1] > scores[2]


def test_an_anogan_is_not_written_as_onnx():
    model = build("anogan", search_steps=2).eval()
    with pytest.raises(SettingsError, match="anogan cannot be written as ONNX: its scores are fou"):
        trace(model, model, ["x_hat"])


@pytest.mark.slow
def test_an_anogan_comes_nearer_to_discs_than_to_squares():
    model = build("anogan", latent_dim=4, hidden_dim=64, critic_width=8)
    trained(model, blobs(256), epochs=120, batch_size=32, learning_rate=4e-3)
    maps = [model.anomaly_map(to_model_input(f(48, seed=1))) for f in (blobs, squares)]
    near, far = (np.asarray(v.detach().flatten(1).mean(1)) for v in maps)
    mean = to_model_input(blobs(256)).mean(0)
    assert near.mean() < far.mean()
    assert near.mean() < 0.75 * (to_model_input(blobs(48, seed=1)) - mean).abs().mean()
