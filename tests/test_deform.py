"""Known truths of deformations, and of MorphAEus."""

import numpy as np
import pytest
import torch

from normalis import models
from normalis.errors import SettingsError
from normalis.models.deform import folded_share, integrate, likeness, roughness, warp
from normalis.models.morphaeus import MorphAEus
from normalis.training import loop
from normalis.training.settings import TrainingSettings


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def smooth_velocity(side=64, size=2.0):
    """A swirl that dies out towards the border, at most `size` pixels long."""
    line = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(line, line, indexing="ij")
    hill = torch.exp(-(x**2 + y**2) / 0.2)
    return size * torch.stack([x * hill, -y * hill])[None] / 0.3


@pytest.mark.parametrize("side", [16, 64])
def test_no_flow_returns_the_image_itself(side):
    x = noise(2, 3, side, side)
    assert torch.equal(warp(x, torch.zeros(2, 2, side, side)), x)


def test_no_flow_returns_the_image_up_to_rounding_at_any_size():
    x = noise(2, 1, 48, 80)
    torch.testing.assert_close(warp(x, torch.zeros(2, 2, 48, 80)), x, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("down", "right"), [(1, 0), (0, 1), (-2, 3)])
def test_a_constant_flow_shifts_by_whole_pixels(down, right):
    x = noise(1, 1, 32, 32)
    flow = torch.tensor([down, right]).view(1, 2, 1, 1).expand(1, 2, 32, 32).float()
    inner = slice(4, 28)
    expected = x.roll((-down, -right), (2, 3))
    assert torch.equal(warp(x, flow)[..., inner, inner], expected[..., inner, inner])


def test_half_a_pixel_is_the_mean_of_two():
    x = noise(1, 1, 16, 16)
    flow = torch.zeros(1, 2, 16, 16)
    flow[:, 0] = 0.5
    expected = (x[:, :, :-1] + x[:, :, 1:]) / 2
    torch.testing.assert_close(warp(x, flow)[:, :, :-1], expected)


def test_a_constant_velocity_integrates_to_itself():
    velocity = torch.tensor([1.5, -0.75]).view(1, 2, 1, 1).expand(1, 2, 32, 32)
    torch.testing.assert_close(integrate(velocity), velocity, atol=1e-5, rtol=0)


def test_the_opposite_velocity_undoes_the_flow():
    velocity = smooth_velocity()
    there, back = integrate(velocity), integrate(-velocity)
    around = there + warp(back, there)  # p -> p + there(p) -> that + back(that)
    assert there.abs().max() > 1
    assert around.abs().max() < 0.01
    assert (folded_share(there) == 0).all()


def test_a_flow_that_swaps_neighbours_folds():
    flow = torch.zeros(1, 2, 16, 16)
    flow[:, 1, :, ::2], flow[:, 1, :, 1::2] = 1.5, -1.5
    assert folded_share(flow) > 0.4


def test_likeness_of_linear_functions_is_one():
    x = noise(2, 1, 32, 32)
    torch.testing.assert_close(likeness(x, 3 * x + 2), torch.ones_like(x), atol=1e-3, rtol=0)
    torch.testing.assert_close(likeness(x, -x), torch.ones_like(x), atol=1e-3, rtol=0)
    assert likeness(x, noise(2, 1, 32, 32, seed=1)).mean() < 0.1


def test_likeness_is_the_squared_correlation_of_numpy():
    a, b = noise(1, 1, 16, 16), noise(1, 1, 16, 16, seed=1)
    window = (0, 0, slice(3, 12), slice(2, 11))
    expected = np.corrcoef(a[window].flatten(), b[window].flatten())[0, 1] ** 2
    assert likeness(a, b)[0, 0, 7, 6].item() == pytest.approx(expected, abs=1e-3)


def test_likeness_of_faint_contrast_on_a_bright_ground_stays_a_share():
    """Variances of 1e-9 beside a mean of -1 round to nothing, or to many times as much."""
    faint = -1 + 3e-5 * noise(2, 1, 32, 32)
    for other in (faint, noise(2, 1, 32, 32, seed=1), torch.full_like(faint, -1.0)):
        found = likeness(faint, other)
        assert found.max() <= 1.001
        assert found.min() >= 0
    assert likeness(torch.full_like(faint, -1.0), torch.full_like(faint, 0.3)).min() > 0.99


def test_likeness_of_flat_images_has_a_finite_gradient():
    a = torch.zeros(1, 1, 16, 16, requires_grad=True)
    for other in (torch.zeros(1, 1, 16, 16), noise(1, 1, 16, 16)):
        (gradient,) = torch.autograd.grad(likeness(a, other).mean(), a)
        assert torch.isfinite(gradient).all()


def test_roughness_is_none_of_a_translation_and_the_same_at_any_size():
    assert roughness(torch.full((1, 2, 16, 16), 3.0)) == 0
    line = torch.arange(32.0)
    stretch = torch.stack([0.1 * line[:, None].expand(32, 32), torch.zeros(32, 32)])[None]
    assert roughness(stretch).item() == pytest.approx(0.1**2 / 2 / 2)  # one of two components


@pytest.mark.slow
def test_a_translation_is_recovered():
    """3 pixels, by descent on likeness alone, as registration does."""
    x = torch.nn.functional.avg_pool2d(noise(1, 1, 64, 64), 9, 1, 4)
    moved = x.roll((3, 0), (2, 3))
    shift = torch.zeros(1, 2, 1, 1, requires_grad=True)
    optimiser = torch.optim.Adam([shift], 0.05)
    for _ in range(200):
        flow = integrate(shift.expand(1, 2, 64, 64), 2)
        loss = 1 - likeness(moved, warp(x, flow))[..., 8:-8, 8:-8].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    found = shift.detach().flatten().tolist()
    assert found == pytest.approx([-3, 0], abs=0.3)


# --- MorphAEus ---


def build(**options):
    model = models.build("morphaeus", image_size=32, **{"latent_dim": 8, "width": 4, **options})
    assert isinstance(model, MorphAEus)
    return model


def discs(n, *, shift=0, seed=0):
    """Discs of radius 8 whose centre moves by less than a pixel, in [0, 1]."""
    source = torch.Generator().manual_seed(seed)
    line = torch.arange(32.0)
    centre = 15.5 + 0.5 * torch.randn(n, 2, 1, 1, generator=source)
    y, x = line[:, None] - centre[:, 0], line - centre[:, 1] - shift
    return torch.sigmoid(2 * (8 - (x**2 + y**2).sqrt()))[:, None]


def fit(model, pixels, epochs, **options):
    settings = TrainingSettings(
        epochs=epochs, batch_size=16, precision="float32", learning_rate=2e-3, **options
    )
    loop.fit(model, pixels, settings=settings, device="cpu")
    return model.eval()


def test_it_begins_without_movement():
    model, x = build().eval(), 2 * discs(3) - 1
    with torch.no_grad():
        prior, velocity = model.prior_and_velocity(x)
        assert velocity.abs().max() < 1e-3
        torch.testing.assert_close(model.reconstruct(x), prior, atol=1e-3, rtol=0)
        assert torch.equal(model.decode(model.encode(x)), prior)


@pytest.mark.slow
def test_an_endless_smoothness_leaves_the_plain_autoencoder():
    pixels, x = discs(48), 2 * discs(8, shift=2, seed=1) - 1
    moved = {}
    for smoothness in (0.0, 1e6):
        model = fit(build(smoothness=smoothness, rising=1e-3), pixels, 12)
        with torch.no_grad():
            prior, velocity = model.prior_and_velocity(x)
            change = (model.anomaly_map(x) - (x - prior).abs()[:, 0]).abs().mean()
        inner = velocity - velocity.mean((2, 3), keepdim=True)  # a translation is not rough
        moved[smoothness] = inner.abs().mean().item()
        if smoothness:
            assert change < 0.05 * (x - prior).abs().mean()
    assert moved[1e6] < 0.02
    assert moved[0.0] > 5 * moved[1e6]


@pytest.mark.slow
def test_a_shifted_disc_scores_below_a_disc_with_a_hole_of_equal_error():
    normal = discs(1, seed=9)
    model = fit(build(), torch.cat([discs(96), discs(32, shift=1, seed=2)]), 60)
    shifted = torch.nn.functional.pad(normal, (2, 0, 0, 0))[..., :32]
    line = torch.arange(32.0) - 15.5
    depth = torch.exp(-(line[:, None] ** 2 + line**2) / 8)
    error = (shifted - normal).square().sum()
    hole = normal - depth * (error / depth.square().sum()).sqrt()
    torch.testing.assert_close((hole - normal).square().sum(), error)
    with torch.no_grad():
        scores = model.anomaly_score(2 * torch.cat([normal, shifted, hole]) - 1)
    assert scores[0] < scores[1] < scores[2]


def test_measure_says_what_deforming_hides():
    found = build().eval().measure(2 * discs(6) - 1)
    assert set(found) == {"removed of normal residual", "removed of a disc", "folded"}
    assert abs(found["removed of normal residual"]) < 1e-3, "it does not move yet"
    assert found["folded"] == 0


def test_the_deformer_joins_after_its_share():
    first, second = build(deform_from=0.25).phases()
    assert (first.span, second.span) == ((0.0, 0.25), (0.25, 1.0))
    names = {id(p): n for n, p in build().named_parameters()}
    assert len(second.parameters) == len(names)
    model = build(rising=0.5)
    weights = []
    for share in (0.0, 0.25, 0.5, 0.9):
        model.trained_share = share
        weights.append(model._smoothness())
    assert weights == pytest.approx([1e-3, 1.501, 3.0, 3.0])


@pytest.mark.parametrize("name", ["rising", "deform_from"])
def test_shares_are_checked(name):
    with pytest.raises(SettingsError, match=f"{name} must be in"):
        build(**{name: 1.0})
