"""Known truths of restoration with a normative prior, and of the bound that it climbs."""

import pytest
import torch
from torch import nn

from normalis import models, scorers
from normalis.scorers.restoration import Restoration, total_variation_step


class Energy(nn.Module):
    """A method that is nothing but a bound of its likelihood."""

    has_latent = False

    def __init__(self, energy):
        super().__init__()
        self.negative_elbo = energy
        self.place = nn.Parameter(torch.zeros(()))


def noise(n, *, side=8, seed=0):
    return torch.randn(n, 1, side, side, generator=torch.Generator().manual_seed(seed)) / 3


def change(energy, y, tv, **options):
    options = {"clip": 1e9, **options}
    return scorers.build("restoration", **options).changes(Energy(energy), y, tv)


def test_a_gaussian_prior_restores_as_its_closed_form():
    source = torch.Generator().manual_seed(0)
    factor = torch.randn(64, 64, generator=source) / 8
    prior = factor @ factor.T + 0.2 * torch.eye(64)
    variance, y = 0.3, noise(3)

    def energy(x):
        flat = x.flatten(1)
        likelihood = (flat - y.flatten(1)).square().sum(1) / (2 * variance)
        return likelihood + ((flat @ torch.linalg.inv(prior)) * flat).sum(1) / 2

    found = y + change(energy, y, 0.0, steps=800, step_size=0.05)
    gain = prior @ torch.linalg.inv(prior + variance * torch.eye(64))
    torch.testing.assert_close(found.flatten(1), y.flatten(1) @ gain.T, rtol=1e-3, atol=1e-4)


def test_with_a_flat_bound_an_image_stays_as_it_is():
    y = noise(2)
    for tv in (0.0, 0.5):
        assert torch.equal(change(lambda x: 0 * x.flatten(1).sum(1), y, tv), torch.zeros_like(y))


def test_a_change_that_may_not_vary_is_constant():
    y = noise(2)
    found = change(lambda x: x.square().flatten(1).sum(1), y, 1e6, steps=200)
    level = -y.mean((1, 2, 3))
    torch.testing.assert_close(found, level.view(2, 1, 1, 1).expand_as(y), rtol=0.01, atol=1e-3)


def test_the_step_against_total_variation_is_exact():
    two = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    found, _ = total_variation_step(two, 0.2, steps=200)
    torch.testing.assert_close(found.flatten(), torch.tensor([0.2, 0.8]))
    square = torch.zeros(1, 1, 24, 24)
    square[..., 8:16, 8:16] = 1  # its edge of 4 x 8 pulls on 64 pixels, and on those around it
    found, _ = total_variation_step(square, 0.1, steps=4000)
    assert found[..., 8:16, 8:16].mean().item() == pytest.approx(1 - 0.1 * 32 / 64, abs=1e-3)
    assert found[..., :8, :].mean().item() == pytest.approx(0.1 * 32 / (24**2 - 64), abs=1e-3)
    assert found.mean() == pytest.approx(64 / 24**2, abs=1e-6), "the mean stays"


def normals(n, *, seed):
    """Return images of three smooth factors with fine noise."""
    source = torch.Generator().manual_seed(seed)
    line = torch.linspace(0, 3.14, 32)
    shapes = torch.stack(
        [
            torch.outer(f(line), g(line))
            for f, g in ((torch.sin, torch.sin), (torch.cos, torch.sin), (torch.sin, torch.cos))
        ]
    )
    weights = torch.randn(n, 3, generator=source) / 4
    fine = 0.03 * torch.randn(n, 32, 32, generator=source)
    return (torch.einsum("nk,khw->nhw", weights, shapes) + fine)[:, None]


@pytest.fixture(scope="module")
def linear():
    """Return the best linear model of `normals` as a bound, and a scorer that was fitted to it."""
    pca = models.build("pca", image_size=32, latent_dim=3).fit(normals(200, seed=0))
    model = Energy(lambda x: x[0].numel() * pca.anomaly_score(x))
    return model, scorers.build("restoration").fit(model, normals(40, seed=1))


def test_a_square_is_removed_and_its_area_found(linear):
    model, scorer = linear
    healthy = normals(4, seed=2)
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[10:18, 6:14] = True
    found = scorer.anomaly_map(model, healthy + 0.6 * mask)
    inside = found > found.flatten(1).amax(1).view(-1, 1, 1) / 2
    dice = 2 * (inside & mask).sum((1, 2)) / (inside.sum((1, 2)) + mask.sum())
    assert (dice > 0.9).all()
    restored = scorer.restore(model, healthy + 0.6 * mask)
    left = (restored - healthy)[:, 0, mask].mean(1)
    assert (left < 0.3).all(), "most of 0.6 is gone"


def test_the_weight_is_chosen_by_normal_images(linear):
    model, scorer = linear
    x = normals(64, seed=1)
    without = scorers.build("restoration", tv=1e-9).fit(model, x).anomaly_map(model, x).mean()
    assert scorer.anomaly_map(model, x).mean() <= 0.3 * without
    more = scorers.build("restoration", less=0.99).fit(model, x)
    assert more.arrays["tv"] > scorer.arrays["tv"]
    assert scorers.build("restoration", tv=0.7).fit(model, x).arrays["tv"] == pytest.approx(0.7)


def test_a_pixel_is_followed_up_to_the_clip():
    y = noise(1)
    found = change(lambda x: 1e6 * x.flatten(1).sum(1), y, 0.0, steps=3, step_size=0.01, clip=2.0)
    torch.testing.assert_close(found, torch.full_like(y, -0.06))


def test_a_step_that_is_too_long_is_halved_until_it_is_not():
    """Of two images one is a thousand times as steep; each takes steps of its own."""
    y = noise(2)
    steep = torch.tensor([1.0, 1000.0])

    def energy(x):
        return steep[: len(x)] * x.square().flatten(1).sum(1)

    together = change(energy, y, 0.0, steps=60)
    torch.testing.assert_close(together[:1], change(energy, y[:1], 0.0, steps=60))
    assert (y + together).abs().max() < 0.01


def test_a_stiff_network_is_restored_to_what_it_finds_likelier():
    model = models.build("ae-u", image_size=32, hidden_dim=8, latent_dim=3, noise=0.5).eval()
    with torch.no_grad():
        model.decoder.output.weight[:, 1] = -1.0  # the least variance nearly everywhere
    x = noise(3, side=32)
    scorer = scorers.build("restoration", tv=1e-9, steps=20).fit(model, x)
    with torch.no_grad():
        assert (model.negative_elbo(scorer.restore(model, x)) < model.negative_elbo(x)).all()


@pytest.mark.parametrize("method", ["vae", "ae-u", "rate-ae"])
def test_the_bound_is_the_loss_times_the_pixels(method):
    model = models.build(method, image_size=32, hidden_dim=8, latent_dim=3).eval()
    x = noise(4, side=32)
    with torch.no_grad():
        draws = {"noise": torch.zeros(4, 3)}
        losses = model.losses(x, **draws)
        if method == "rate-ae":
            losses.pop("rate")
        expected = float(sum(losses.values())) * 32 * 32
        assert model.negative_elbo(x).mean().item() == pytest.approx(expected, rel=1e-4)
        per_pixel = scorers.build("elbo").anomaly_score(model, x)
        torch.testing.assert_close(per_pixel * 32 * 32, model.negative_elbo(x))


@pytest.mark.parametrize("part", ["restoration", "median", "postprocessed"])
def test_pictures_show_what_the_image_is_compared_with(part):
    model = models.build("vae", image_size=32, hidden_dim=8, latent_dim=3).eval()
    x = noise(3, side=32)
    restoration = scorers.build("restoration").fit(model, x)
    scorer = restoration
    if part != "restoration":
        scorer = scorers.build(part, part="restoration").fit(model, x)
    assert torch.equal(scorer.reference(model, x), restoration.restore(model, x))
    plain = scorers.build("median").reference(model, x)
    torch.testing.assert_close(plain, model.reconstruct(x).detach(), rtol=1e-4, atol=1e-6)


def test_a_method_without_a_likelihood_is_refused():
    model = models.build("ae", image_size=32, hidden_dim=8, latent_dim=3)
    for name in ("restoration", "elbo"):
        assert "needs a method with a likelihood (vae" in scorers.build(name).supports(model)


def test_what_takes_gradients_says_so():
    assert Restoration().needs_gradients
    assert scorers.build("median", part="gradient").needs_gradients
    assert scorers.build("combination", parts="l2,gradient").needs_gradients
    assert not scorers.build("median").needs_gradients
    assert scorers.build("median", part="restoration").needs_fit
