"""Entropy against closed forms, invariances, and the limits that it must refuse to pass."""

import json
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from normalis import entropy
from normalis.entropy import (
    ValidityWarning,
    coding_rate,
    coding_rate_bias,
    coding_rate_from_covariance,
    coding_rate_of_groups,
    decoder_coding_rate,
    decoder_geometry,
    decoder_referred_rate,
    decoder_steps,
    gaussian_entropy,
    gaussian_entropy_of,
    gaussian_entropy_standard_error,
    gaussian_mutual_information,
    gaussian_rate_distortion,
    half_sampling,
    heldout_code_length,
    kozachenko_leonenko,
    ksg_mutual_information,
    neighbours_suffice,
    quantised_entropy,
    rate_distortion_curve,
    shannon_lower_bound,
)
from normalis.errors import DataError, SettingsError

COVARIANCE = np.array([[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.5]])


def gaussian(n, covariance=COVARIANCE, seed=0):
    return np.random.default_rng(seed).multivariate_normal(
        np.zeros(len(covariance)), covariance, size=n
    )


def rotation(d, seed=0):
    return stats.ortho_group.rvs(d, random_state=seed) if d > 1 else np.array([[-1.0]])


def test_every_name_exported_is_there():
    for name in entropy.__all__:
        assert hasattr(entropy, name)


# -- Gaussian ------------------------------------------------------------------------------------


def test_gaussian_entropy_of_matches_scipy():
    expected = stats.multivariate_normal(cov=COVARIANCE).entropy()
    assert gaussian_entropy_of(COVARIANCE) == pytest.approx(expected)
    assert gaussian_entropy_of([[1.0]]) == pytest.approx(0.5 * math.log(2 * math.pi * math.e))


def test_gaussian_entropy_is_unbiased_where_the_plug_in_is_not():
    d, n = 8, 20
    truth = gaussian_entropy_of(np.eye(d))
    draws = [np.random.default_rng(s).normal(size=(n, d)) for s in range(400)]
    estimates = np.array([gaussian_entropy(x) for x in draws])
    plug_in = np.mean([gaussian_entropy_of(np.cov(x.T)) for x in draws])
    error = gaussian_entropy_standard_error(n, d)
    assert abs(estimates.mean() - truth) < 4 * error / math.sqrt(len(draws))
    assert plug_in < truth - 1.0
    assert estimates.std() == pytest.approx(error, rel=0.15)


@pytest.mark.parametrize("estimator", [gaussian_entropy, kozachenko_leonenko])
@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-5, 5), seed=st.integers(0, 50))
@settings(max_examples=15, deadline=None)
def test_scaling_shifts_by_log_a_and_rotation_changes_nothing(estimator, scale, shift, seed):
    x = gaussian(300, seed=1)
    base = estimator(x)
    moved = scale * x @ rotation(3, seed) + shift
    assert estimator(moved) == pytest.approx(base + 3 * math.log(scale), abs=1e-6)


@pytest.mark.parametrize("estimator", [gaussian_entropy, kozachenko_leonenko])
def test_entropy_of_a_product_adds(estimator):
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(4000, 1)), 2.0 * rng.normal(size=(4000, 2))
    assert estimator(np.hstack([x, y])) == pytest.approx(estimator(x) + estimator(y), abs=0.1)


def test_gaussian_mutual_information_is_the_closed_form():
    rho = 0.8
    x = gaussian(20_000, np.array([[1.0, rho], [rho, 1.0]]))
    expected = -0.5 * math.log(1 - rho**2)
    assert gaussian_mutual_information(x[:, :1], x[:, 1:]) == pytest.approx(expected, abs=0.02)


def test_gaussian_refuses_too_few_samples_and_singular_covariances():
    x = gaussian(50)
    with pytest.warns(ValidityWarning, match="more than 64"):
        assert math.isnan(gaussian_entropy(np.random.default_rng(0).normal(size=(60, 64))))
    with pytest.warns(ValidityWarning, match="full rank"):
        assert math.isnan(gaussian_entropy(np.hstack([x, x[:, :1]])))
    with pytest.warns(ValidityWarning, match="full rank"):
        assert math.isnan(gaussian_mutual_information(x, 2 * x))
    with pytest.warns(ValidityWarning):
        assert math.isnan(gaussian_entropy_standard_error(5, 5))


def test_malformed_samples_are_the_callers_mistake():
    for bad in (np.zeros((2, 2, 2)), np.array([[np.nan], [1.0]]), np.zeros((1, 3))):
        with pytest.raises(DataError):
            gaussian_entropy(bad)
    with pytest.raises(DataError, match="covariance"):
        gaussian_entropy_of(np.zeros((2, 3)))
    with pytest.raises(DataError, match="pair up"):
        gaussian_mutual_information(gaussian(5), gaussian(6))


# -- nearest neighbours --------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 5, 8])
def test_knn_entropy_of_a_gaussian(d):
    x = np.random.default_rng(d).normal(size=(3 * 2**d + 2000, d))
    truth = 0.5 * d * math.log(2 * math.pi * math.e)
    assert kozachenko_leonenko(x) == pytest.approx(truth, abs=0.05 * d)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_knn_entropy_of_a_uniform_cube(d):
    x = 4.0 * np.random.default_rng(d).random((5000, d))
    assert kozachenko_leonenko(x) == pytest.approx(d * math.log(4.0), abs=0.05 * d)


def test_knn_entropy_at_its_limit_is_biased_as_the_docstring_says():
    d = 8
    cube = np.random.default_rng(0).random((3 * 2**d, d))
    assert neighbours_suffice(len(cube), d)
    assert 0 < kozachenko_leonenko(cube) < 0.16 * d


def test_knn_refuses_many_dimensions_copies_and_subspaces():
    rng = np.random.default_rng(0)
    with pytest.warns(ValidityWarning, match="k 2\\^d"):
        assert math.isnan(kozachenko_leonenko(rng.normal(size=(1000, 64))))
    with pytest.warns(ValidityWarning, match="no two samples may be equal"):
        assert math.isnan(kozachenko_leonenko(np.repeat(rng.normal(size=(200, 2)), 4, axis=0)))
    x = rng.normal(size=(200, 1))
    with pytest.warns(ValidityWarning, match="subspace"):
        assert math.isnan(kozachenko_leonenko(np.hstack([x, -x])))
    with pytest.raises(SettingsError):
        kozachenko_leonenko(x, k=0)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_ksg_mutual_information_of_a_gaussian(rho):
    x = gaussian(2000, np.array([[1.0, rho], [rho, 1.0]]))
    expected = -0.5 * math.log(1 - rho**2)
    assert ksg_mutual_information(x[:, :1], x[:, 1:]) == pytest.approx(expected, abs=0.06)


def test_ksg_sees_dependence_that_correlation_misses():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1500, 1))
    y = x**2 + 0.1 * rng.normal(size=x.shape)
    assert ksg_mutual_information(x, y) > 0.8
    assert gaussian_mutual_information(x, y) < 0.1


def test_ksg_of_a_noiseless_copy_only_measures_the_sample_size():
    x = np.random.default_rng(0).normal(size=(3200, 1))
    small, large = ksg_mutual_information(x[:400], x[:400]), ksg_mutual_information(x, x)
    assert large - small == pytest.approx(math.log(8), abs=0.15)


def test_ksg_refuses_too_many_dimensions_together():
    x = np.random.default_rng(0).normal(size=(1000, 12))
    with pytest.warns(ValidityWarning):
        assert math.isnan(ksg_mutual_information(x[:, :6], x[:, 6:]))
    with pytest.raises(DataError, match="pair up"):
        ksg_mutual_information(x[:5, :1], x[:6, :1])


# -- coding rate ---------------------------------------------------------------------------------


def test_coding_rate_of_a_gaussian_channel():
    variances = np.array([3.0, 1.0, 0.0])
    z = np.random.default_rng(0).normal(size=(20_000, 3)) * np.sqrt(variances)
    assert coding_rate(z) == pytest.approx(0.5 * np.log1p(variances).sum(), rel=0.01)
    assert coding_rate_from_covariance(np.diag(variances)) == pytest.approx(
        0.5 * np.log1p(variances).sum()
    )


def test_coding_rate_is_the_same_for_arrays_and_tensors_and_wide_batches():
    z = gaussian(500)
    covariance = np.cov(z.T)
    rate = coding_rate(z)
    assert float(coding_rate(torch.from_numpy(z))) == pytest.approx(rate)
    assert coding_rate_from_covariance(covariance) == pytest.approx(rate)
    assert float(coding_rate_from_covariance(torch.from_numpy(covariance))) == pytest.approx(rate)
    wide = torch.randn(6, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    direct = coding_rate_from_covariance(torch.cov(wide.T))
    assert float(coding_rate(wide)) == pytest.approx(float(direct))


def test_coding_rate_of_few_groups_is_unbiased_and_its_interval_holds():
    """40 patients of 3 near copies each, of whom a plain covariance reports too little."""
    variances = np.array([400.0, 100, 50, 20, 10, 5, 2, 1])
    truth = 0.5 * np.log1p(variances).sum()
    rng = np.random.default_rng(0)
    groups, plain, found = np.repeat(np.arange(40), 3), [], []
    for _ in range(100):
        z = np.repeat(rng.normal(size=(40, 8)) * variances**0.5, 3, axis=0)
        z += rng.normal(size=z.shape) * 1e-3
        plain.append(coding_rate_from_covariance(np.cov(z, rowvar=False)))
        found.append(coding_rate_of_groups(z, groups))
    assert np.mean(plain) < truth - 0.3
    assert np.mean([e.value for e in found]) == pytest.approx(truth, abs=0.1)
    assert 0.88 <= np.mean([e.low <= truth <= e.high for e in found]) <= 0.99
    order = rng.permutation(len(z))
    names = np.array([f"patient {g}" for g in groups])
    again = coding_rate_of_groups(z[order], names[order])
    assert again.value == pytest.approx(found[-1].value)


def test_coding_rate_of_groups_says_where_they_are_too_few():
    z = np.repeat(np.random.default_rng(0).normal(size=(20, 30)) * 10, 3, axis=0)
    with pytest.warns(ValidityWarning, match="at least 10 groups, got 6"):
        assert np.isnan(coding_rate_of_groups(z, np.arange(60) % 6).value)
    with pytest.warns(ValidityWarning, match="20 groups are too few: .* biased low by about"):
        assert np.isnan(coding_rate_of_groups(z, np.arange(60) // 3).value)
    with pytest.raises(DataError, match="one entry per vector, 60, got"):
        coding_rate_of_groups(z, np.arange(59))
    many = np.random.default_rng(1).normal(size=(5000, 2)) * 3
    assert coding_rate_of_groups(many).value == pytest.approx(coding_rate(many), rel=1e-3)


def test_coding_rate_trains():
    z = torch.randn(10, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(coding_rate, z.requires_grad_())
    flat = torch.zeros(10, 4, requires_grad=True)  # a collapsed latent must not give NaN
    coding_rate(flat).backward()
    assert torch.isfinite(flat.grad).all()


def test_coding_rate_bias_is_the_one_that_small_samples_show():
    values, n = np.array([4.0, 2.0, 1.0, 0.5]), 60
    truth = 0.5 * np.log1p(values).sum()
    rng = np.random.default_rng(0)
    draws = [
        coding_rate_from_covariance(np.cov((rng.normal(size=(n, 4)) * np.sqrt(values)).T))
        for _ in range(800)
    ]
    assert truth - np.mean(draws) == pytest.approx(coding_rate_bias(values, n), rel=0.3)


def test_coding_rate_refuses_64_samples_of_128_dimensions():
    z = np.random.default_rng(0).normal(size=(64, 128))
    with pytest.warns(ValidityWarning, match="too few"):
        assert math.isnan(coding_rate(z))
    with pytest.raises(DataError):
        coding_rate(torch.zeros(3))
    with pytest.raises(DataError):
        coding_rate_from_covariance(np.zeros((2, 3)))


# -- decoder-referred ----------------------------------------------------------------------------


def linear_decoder(pixels, d, seed=0):
    weight = torch.randn(
        d, pixels, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    return (lambda z: z @ weight), weight.numpy()


def test_decoder_referred_rate_of_a_linear_decoder_is_the_gaussian_rate_distortion():
    decode, weight = linear_decoder(20, 3)
    z = gaussian(4000)
    geometry = decoder_geometry(decode, torch.from_numpy(z[:10]))
    eigenvalues = np.linalg.eigvalsh(weight.T @ np.cov(z.T) @ weight)[::-1][:3]
    expected = gaussian_rate_distortion(eigenvalues, 1e-3, pixels=20).rate
    assert decoder_referred_rate(z, geometry, 1e-3) == pytest.approx(expected, abs=0.02)


def test_decoder_referred_rate_does_not_depend_on_how_z_is_written():
    decode, _ = linear_decoder(20, 2)
    z = gaussian(3000, COVARIANCE[:2, :2])
    u = np.sinh(z)  # a smooth invertible change; the decoder undoes it
    plain = decoder_geometry(decode, torch.from_numpy(z))
    warped = decoder_geometry(lambda v: decode(torch.asinh(v)), torch.from_numpy(u), chunk=500)
    a = decoder_referred_rate(z, plain, 1e-3, entropy="knn")
    b = decoder_referred_rate(u, warped, 1e-3, entropy="knn")
    assert a == pytest.approx(b, abs=0.1)
    assert abs(kozachenko_leonenko(u) - kozachenko_leonenko(z)) > 1.0  # while h(Z) moves


def test_decoder_coding_rate_is_that_of_the_decoded_images_and_ignores_linear_changes_of_z():
    decode, weight = linear_decoder(20, 3)
    z = np.random.default_rng(0).normal(size=(4000, 3))
    geometry = decoder_geometry(decode, torch.from_numpy(z[:5]))
    noise = 0.3
    covariance = weight.T @ np.cov(z, rowvar=False) @ weight / noise
    expected = coding_rate_from_covariance(covariance)
    assert decoder_coding_rate(z, geometry, noise) == pytest.approx(expected, rel=1e-6)
    change = np.random.default_rng(1).normal(size=(3, 3))
    inverse = torch.from_numpy(np.linalg.inv(change))
    other = decoder_geometry(lambda v: decode(v @ inverse), torch.from_numpy(z[:5] @ change))
    changed = decoder_coding_rate(z @ change, other, noise)
    assert changed == pytest.approx(expected, rel=1e-6)
    with pytest.raises(SettingsError, match="noise"):
        decoder_coding_rate(z, geometry, 0.0)


def test_decoder_referred_rate_refuses_large_distortions_and_dead_directions():
    decode, _ = linear_decoder(20, 3)
    z = gaussian(500)
    geometry = decoder_geometry(decode, torch.from_numpy(z[:5]))
    with pytest.warns(ValidityWarning, match="D must be small"):
        assert math.isnan(decoder_referred_rate(z, geometry, 10.0))
    dead = decoder_geometry(
        lambda v: decode(v * torch.tensor([1.0, 1.0, 0.0])), torch.zeros(4, 3).double()
    )
    with pytest.warns(ValidityWarning, match="ignores"):
        assert math.isnan(decoder_referred_rate(z, dead, 1e-3))
    with pytest.raises(DataError, match="latent dimensions"):
        decoder_referred_rate(z[:, :2], geometry, 1e-3)
    with pytest.raises(SettingsError):
        decoder_referred_rate(z, geometry, 1e-3, entropy="histogram")  # type: ignore[arg-type]


def test_decoder_geometry_works_on_a_convolutional_decoder():
    torch.manual_seed(0)
    decode = torch.nn.Sequential(
        torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Unflatten(1, (1, 4, 4)),
        torch.nn.ConvTranspose2d(1, 1, 4, stride=2, padding=1),
    )  # fmt: skip
    geometry = decoder_geometry(decode, torch.randn(9, 3), chunk=4)
    assert geometry.pixels == 64
    assert geometry.log_volume.shape == (9,)
    step = 1e-3
    base, moved = decode(torch.zeros(1, 3)), decode(torch.tensor([[step, 0, 0]]))
    at_zero = decoder_geometry(decode, torch.zeros(1, 3))
    slope = float(((moved - base) ** 2).sum().detach()) / step**2
    assert at_zero.metric[0, 0] == pytest.approx(slope, rel=0.05)


# -- quantised -----------------------------------------------------------------------------------


def test_quantised_entropy_tends_to_the_differential_one():
    z = np.random.default_rng(0).normal(size=(20_000, 2)) * [1.0, 3.0]
    step = 0.1
    truth = sum(0.5 * math.log(2 * math.pi * math.e * v) for v in (1.0, 9.0)) - 2 * math.log(step)
    assert quantised_entropy(z, step) == pytest.approx(truth, abs=0.02)
    with pytest.warns(ValidityWarning, match="5 samples a bin"):
        assert math.isnan(quantised_entropy(z[:200], 1e-3))


def test_quantised_entropy_of_equal_bins_is_log_m():
    z = np.tile(np.arange(8.0), 500)
    assert quantised_entropy(z, 1.0) == pytest.approx(math.log(8), abs=1e-3)
    assert quantised_entropy(np.zeros(50), 1.0) == 0.0


def test_heldout_code_length_bounds_the_entropy_and_punishes_drift():
    rng = np.random.default_rng(0)
    train, heldout = rng.normal(size=(2000, 3)), rng.normal(size=(2000, 3))
    length = heldout_code_length(train, heldout, 0.2)
    assert quantised_entropy(heldout, 0.2) < length < quantised_entropy(heldout, 0.2) + 0.3
    assert heldout_code_length(train, heldout + 2.0, 0.2) > length + 3.0
    assert math.isfinite(heldout_code_length(train, heldout + 1e4, 0.2))
    with pytest.raises(DataError):
        heldout_code_length(train, heldout[:, :2], 0.2)


def test_decoder_steps_cost_the_distortion_that_was_asked():
    decode, weight = linear_decoder(50, 3)
    z = gaussian(5000)
    metric = decoder_geometry(decode, torch.zeros(1, 3).double()).metric
    step = decoder_steps(metric, 1e-4, pixels=50)
    error = ((np.rint(z / step) * step - z) @ weight) ** 2
    assert error.mean() == pytest.approx(1e-4, rel=0.05)
    with pytest.raises(DataError, match="ignores"):
        decoder_steps(np.diag([1.0, 0.0]), 1e-4, pixels=50)


# -- rate-distortion -----------------------------------------------------------------------------


def test_rate_distortion_of_one_gaussian():
    for variance, allowed in ((1.0, 0.1), (4.0, 1.0), (2.0, 3.0)):
        expected = max(0.0, 0.5 * math.log(variance / allowed))
        point = gaussian_rate_distortion([variance], allowed, pixels=1)
        assert point.rate == pytest.approx(expected)
        assert point.components == (allowed < variance)


@given(
    values=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12),
    share=st.floats(1e-3, 0.999),
)
@settings(max_examples=60, deadline=None)
def test_water_filling_spends_exactly_the_distortion_and_its_slope_is_the_derivative(values, share):
    values = np.array(values)
    d = share * values.mean()
    point = gaussian_rate_distortion(values, d, pixels=len(values))
    assert np.minimum(values, point.water_level).sum() == pytest.approx(d * len(values), rel=1e-6)
    up = gaussian_rate_distortion(values, d * 1.0001, pixels=len(values))
    slope = -2 * (up.rate - point.rate) / math.log(1.0001)
    assert slope == pytest.approx(point.effective_dimension, rel=0.01, abs=1e-6)


def test_shannon_lower_bound_meets_the_gaussian_curve_at_small_distortion():
    h = gaussian_entropy_of(COVARIANCE)
    values = np.linalg.eigvalsh(COVARIANCE)
    for d in (0.3, 0.01):
        upper = gaussian_rate_distortion(values, d, pixels=3).rate
        assert shannon_lower_bound(h, d, dimension=3) <= upper + 1e-9
    assert shannon_lower_bound(h, 0.01, dimension=3) == pytest.approx(upper)
    assert shannon_lower_bound(h, 1e6, dimension=3) == 0.0
    assert math.isnan(shannon_lower_bound(math.nan, 1.0, dimension=3))


def test_rate_distortion_refuses_what_the_samples_cannot_say():
    values = np.linspace(2.0, 1.0, 50)
    with pytest.warns(ValidityWarning, match="5 samples per direction"):
        assert math.isnan(gaussian_rate_distortion(values, 0.1, pixels=50, samples=100).rate)
    with pytest.warns(ValidityWarning, match="outside the known"):
        assert math.isnan(gaussian_rate_distortion(values, 0.1, pixels=50, remainder=6.0).rate)
    with pytest.warns(ValidityWarning, match="2 of 3"):
        curve = rate_distortion_curve(values, [0.1, 0.2, 1.45], pixels=50, samples=100)
    assert [math.isnan(p.rate) for p in curve] == [True, True, False]
    with pytest.raises(SettingsError):
        gaussian_rate_distortion(values, 0.0, pixels=50)
    with pytest.raises(DataError):
        gaussian_rate_distortion([-1.0], 0.1, pixels=1)


# -- error bars ----------------------------------------------------------------------------------


def test_half_sampling_gives_the_standard_error_of_a_mean():
    x = np.random.default_rng(0).normal(size=(400, 1))
    (bar,) = half_sampling(lambda s: s.mean(), x, repeats=200)
    assert (bar.high - bar.low) / 3.92 == pytest.approx(x.std() / 20, rel=0.15)
    assert bar.low < bar.value < bar.high
    assert "[" in str(bar)


def test_half_sampling_over_patients_is_wider_than_over_their_slices():
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(30), 20)
    x = rng.normal(size=30)[patient][:, None] + 0.1 * rng.normal(size=(600, 1))
    (slices,) = half_sampling(lambda s: s.mean(), x, repeats=50)
    (patients,) = half_sampling(lambda s: s.mean(), x, groups=patient, repeats=50)
    assert patients.high - patients.low > 3 * (slices.high - slices.low)


def test_no_interval_goes_below_what_the_statistic_can_be():
    x = np.zeros((40, 1))
    x[0] = 1.0  # in one half of two, so that the interval is wide
    (free,) = half_sampling(lambda s: s.mean(), x)
    (bar,) = half_sampling(lambda s: s.mean(), x, least=0.0)
    assert free.low < 0
    assert (bar.low, bar.value, bar.high) == (0.0, free.value, free.high)
    with pytest.warns(ValidityWarning, match="groups"):
        (few,) = half_sampling(lambda s: s.mean(), x, groups=np.arange(40) % 4, least=0.0)
    assert math.isnan(few.low), "an unknown limit stays unknown"


def test_half_sampling_refuses_few_groups():
    x = np.zeros((20, 1))
    with pytest.warns(ValidityWarning, match="groups"):
        (bar,) = half_sampling(lambda s: s.mean(), x, groups=np.arange(20) % 4)
    assert math.isnan(bar.low)
    with pytest.raises(DataError):
        half_sampling(lambda s: s.mean(), x, groups=np.arange(3))
    with pytest.raises(SettingsError):
        half_sampling(lambda s: s.mean(), x, repeats=1)


# -- fingerprint ---------------------------------------------------------------------------------


def toy_images(n=200, factors=3, size=16, noise=0.01, seed=0):
    """Images that are linear in a known number of smooth factors, and sensor noise."""
    rng = np.random.default_rng(seed)
    grid = np.linspace(0, np.pi, size)
    waves = np.stack([np.outer(np.cos((i + 1) * grid), np.sin(grid)) for i in range(factors)])
    images = 0.5 + 0.05 * np.tensordot(rng.normal(size=(n, factors)), waves, axes=1)
    return (images + noise * rng.normal(size=images.shape)).clip(0, 1)


def test_fingerprint_finds_the_factors_of_known_images():
    result = entropy.fingerprint(toy_images(noise=0.0), repeats=4)
    assert 2.0 < result.participation_ratio.value <= 3.0
    assert result.components["99%"] == 3
    assert result.two_nn.value == pytest.approx(3.0, abs=0.7)
    assert result.images == result.groups == 200
    assert np.all(np.diff([r.value for r in result.rate if not math.isnan(r.value)]) <= 0)


def test_fingerprint_is_json_and_says_what_it_could_not_measure():
    images = toy_images(60)
    copies = (255 * np.concatenate([images, images[:30]])).astype(np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # limits end in the notes, not in the user's terminal
        result = entropy.fingerprint(copies[:, None], repeats=3)
    text = json.dumps(result.to_dict(), allow_nan=False)
    assert json.loads(text)["pixels"] == 256
    assert any("equal another" in note for note in result.notes)
    assert result.distinct <= 60
    assert [row["scale_px"] for row in result.lesion_ranks] == [1.0, 2.0, 4.0, 8.0, 16.0]


def test_fingerprint_takes_patients_and_any_shape():
    flat = toy_images(60).reshape(60, -1)[:, :250]
    result = entropy.fingerprint(flat, groups=np.arange(60) // 3, repeats=3)
    assert result.groups == 20
    assert math.isnan(result.power_slope)
    assert result.lesion_ranks == ()
    with pytest.raises(DataError, match="20 images"):
        entropy.fingerprint(flat[:10])
