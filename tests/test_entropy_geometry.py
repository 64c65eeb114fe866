"""Spectra, intrinsic dimension and lesion-referred water-filling against what is known exactly."""

import math

import numpy as np
import pytest
import skdim
from sklearn.metrics import roc_auc_score

from normalis.entropy import (
    LesionSpectrum,
    ValidityWarning,
    blob,
    blob_spectrum,
    components_for_share,
    distinct_images,
    effective_rank,
    encode_components,
    heldout_spectrum,
    levina_bickel,
    near_copies,
    participation_ratio,
    pass_through,
    pca_dimension,
    predicted_auroc,
    predicted_auroc_from,
    radial_power,
    spectrum,
    two_nn,
)
from normalis.errors import DataError, SettingsError


def manifold(d, n=1000, ambient=30, seed=0):
    """A curved d-dimensional surface in a larger space."""
    rng = np.random.default_rng(seed)
    u = rng.random((n, d))
    weight = rng.normal(size=(2 * d, ambient))
    return np.hstack([u, np.sin(2 * u)]) @ weight


# -- spectra -------------------------------------------------------------------------------------


def test_spectrum_is_the_covariances():
    x = np.random.default_rng(0).normal(size=(50, 8)) * np.arange(1, 9)
    fitted = spectrum(x)
    assert fitted.eigenvalues == pytest.approx(np.linalg.eigvalsh(np.cov(x.T))[::-1])
    assert fitted.directions @ fitted.directions.T == pytest.approx(np.eye(8), abs=1e-12)
    assert fitted.total == pytest.approx(np.cov(x.T).trace())


def test_heldout_spectrum_keeps_all_energy_and_exposes_overfitting():
    rng = np.random.default_rng(0)
    train, other = rng.normal(size=(20, 100)), rng.normal(size=(300, 100))
    fitted = spectrum(train)
    seen = heldout_spectrum(fitted, other)
    assert seen.total == pytest.approx(((other - fitted.mean) ** 2).sum(axis=1).mean())
    assert seen.eigenvalues[0] < fitted.eigenvalues[0] / 2
    with pytest.raises(DataError, match="pixels"):
        heldout_spectrum(fitted, other[:, :50])


def test_effective_ranks_of_flat_and_single_spectra():
    for count in (participation_ratio, effective_rank):
        assert count(np.ones(7)) == pytest.approx(7)
        assert count([5.0, 0.0, 0.0]) == pytest.approx(1)
    assert components_for_share([6.0, 3.0, 1.0], 0.9) == 2
    assert components_for_share([6.0, 3.0, 1.0], 1.0) == 3
    with pytest.raises(SettingsError):
        components_for_share([1.0], 0.0)
    with pytest.raises(DataError):
        effective_rank([0.0, 0.0])


def test_radial_power_finds_a_wave_and_white_noise_is_flat():
    rng = np.random.default_rng(0)
    phase = rng.random((40, 1, 1)) * 2 * np.pi
    wave = np.cos(2 * np.pi * 4 * np.arange(32) / 32 + phase) * np.ones((1, 32, 1))
    frequency, power = radial_power(wave)
    assert frequency[np.argmax(power)] == pytest.approx(4 / 32)
    _, white = radial_power(rng.normal(size=(200, 32, 32)))
    assert white == pytest.approx(np.ones(16), abs=0.15)
    with pytest.raises(DataError):
        radial_power(np.zeros((3, 4, 5)))


# -- intrinsic dimension -------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 5])
def test_manifolds_of_known_dimension(d):
    x = manifold(d)
    assert two_nn(x) == pytest.approx(d, rel=0.15)
    assert levina_bickel(x) == pytest.approx(d, rel=0.15)


def test_the_estimates_agree_with_scikit_dimension():
    x = manifold(5, n=600)
    assert two_nn(x) == pytest.approx(skdim.id.TwoNN().fit(x).dimension_, rel=0.03)
    mle = skdim.id.MLE(K=10).fit(x)
    assert levina_bickel(x) == pytest.approx(mle.dimension_, rel=0.08)


@pytest.mark.parametrize(("d", "least"), [(10, 0.75), (20, 0.55)])
def test_many_dimensions_are_underestimated_as_the_docstring_says(d, least):
    for x in (np.random.default_rng(0).random((1000, d)), manifold(d)):
        for estimate in (two_nn(x), levina_bickel(x)):
            assert least * d < estimate < 0.9 * d


@pytest.mark.parametrize("estimator", [two_nn, levina_bickel, pca_dimension])
def test_scale_rotation_and_padding_change_nothing(estimator):
    x = manifold(3, n=300, ambient=10)
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(40, 40)))
    wide = 7 * np.hstack([x, np.zeros((300, 30))]) @ q + 2
    assert estimator(wide) == pytest.approx(estimator(x), rel=1e-6)


def test_pca_counts_linear_directions():
    x = np.random.default_rng(0).normal(size=(500, 4)) @ np.eye(4, 20)
    assert pca_dimension(x, share=0.999) == 4


def test_near_copies_are_refused_and_distinct_images_mend_it():
    rng = np.random.default_rng(0)
    x = manifold(4, n=300)
    twins = np.concatenate([x, x[:200] + 1e-6 * rng.normal(size=(200, 30))])
    assert near_copies(twins) > 0.5 > 0.02 > near_copies(x)
    for estimator in (two_nn, levina_bickel):
        with pytest.warns(ValidityWarning, match="near copies"):
            assert math.isnan(estimator(twins))
    assert two_nn(twins, allow_copies=True) < 1
    kept = distinct_images(twins, similarity=0.999999)
    assert two_nn(twins[kept]) == pytest.approx(4, rel=0.2)


def test_equal_samples_are_left_out_and_said():
    x = manifold(3, n=200)
    with pytest.warns(ValidityWarning, match="10 of 210 samples equal"):
        value = two_nn(np.concatenate([x, x[:10]]))
    assert value == pytest.approx(two_nn(x), rel=1e-6)


def test_few_samples_are_refused():
    with pytest.warns(ValidityWarning, match="needs 50"):
        assert math.isnan(two_nn(manifold(2, n=30)))
    with pytest.raises(SettingsError):
        levina_bickel(manifold(2, n=60), k=2)


def test_distinct_images_are_those_unlike_any_before():
    x = np.array([[0, 1, 2, 3.0], [0, 2, 4, 6.1], [3, 2, 1, 0], [5, 5, 5, 5], [4, 4, 4, 4]])
    assert distinct_images(x, similarity=0.99).tolist() == [0, 2, 3]


# -- lesion-referred water-filling ---------------------------------------------------------------


def test_components_are_encoded_where_normals_vary_more_than_the_lesion():
    allocation = encode_components([8.0, 4.0, 1.0, 0.5], [1.0, 1.0, 2.0, 0.0])
    assert allocation.encode.tolist() == [True, True, False, True]
    assert allocation.components == 3
    assert allocation.rate == math.inf
    plain = encode_components([8.0, 4.0, 1.0], [1.0, 1.0, 2.0])
    assert plain.rate == pytest.approx(0.5 * math.log(8) + 0.5 * math.log(4))
    with pytest.raises(DataError):
        encode_components([1.0], [1.0, 2.0])
    with pytest.raises(DataError):
        encode_components([1.0], [-1.0])


def test_blob_has_the_width_asked():
    image = blob(33, scale_px=8.0, row=16, column=16)
    assert image[16, 16] == 1.0
    assert image[16, 20] == pytest.approx(0.5)


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_blob_spectrum_equals_drawing_every_blob(scale):
    size = 9
    rng = np.random.default_rng(0)
    normal = spectrum(rng.normal(size=(30, size * size)))
    weight = rng.random((size, size))
    got = blob_spectrum(normal, scale_px=scale, contrast=0.3, positions=weight)
    drawn = np.array(
        [
            0.3 * blob(size, scale_px=scale, row=r, column=c).ravel()
            for r in range(size)
            for c in range(size)
        ]
    )
    p = weight.ravel() / weight.sum()
    energy = (drawn @ normal.directions.T) ** 2
    assert got.energy == pytest.approx(p @ energy)
    assert got.total == pytest.approx(p @ (drawn**2).sum(axis=1))
    left = (drawn**2).sum(axis=1) - energy[:, :4].sum(axis=1)
    assert got.residual_variance[4] == pytest.approx(p @ (left - p @ left) ** 2)


def test_predicted_auroc_matches_gaussian_images_with_drawn_lesions():
    rng = np.random.default_rng(0)
    size, n = 12, 6000
    variances = 0.2 / np.arange(1, size * size + 1) ** 1.2
    q, _ = np.linalg.qr(rng.normal(size=(size * size, size * size)))
    normals = (rng.normal(size=(2 * n, size * size)) * np.sqrt(variances)) @ q.T
    fitted = spectrum(normals)
    lesion = blob_spectrum(fitted, scale_px=3.0, contrast=0.5)
    predicted = predicted_auroc(fitted.eigenvalues, lesion)
    where = rng.integers(0, size, (n, 2))
    drawn = np.array([0.5 * blob(size, scale_px=3.0, row=r, column=c).ravel() for r, c in where])
    centred = normals - fitted.mean
    centred[n:] += drawn
    energy = (centred @ fitted.directions.T) ** 2
    ranks = (0, 5, 20, 60, 120)
    empirical = predicted_auroc_from(
        energy[:400], lesion, outside=np.zeros(400), pixels=size * size, ranks=ranks
    )
    for i, rank in enumerate(ranks):
        measured = roc_auc_score(np.arange(2 * n) >= n, energy[:, rank:].sum(axis=1))
        assert predicted[rank] == pytest.approx(measured, abs=0.03), rank
        assert empirical[i] == pytest.approx(measured, abs=0.03), rank


def test_skewed_residuals_need_the_measured_form():
    """A few images of large energy double the variance and hardly change the ranking."""
    rng = np.random.default_rng(0)
    gain = np.where(rng.random(4000) < 0.05, 6.0, 1.0)[:, None]
    x = gain * rng.normal(size=(4000, 30)) * 0.1
    lesion = LesionSpectrum(energy=np.full(30, 0.01), total=0.3, residual_variance=np.zeros(31))
    energy = x**2
    delta = 0.1 * rng.choice([-1.0, 1.0], size=x.shape)
    both = np.concatenate([energy.sum(axis=1), ((x + delta) ** 2).sum(axis=1)])
    measured = roc_auc_score(np.arange(8000) >= 4000, both)
    variance = np.full(31, energy.sum(axis=1).var())
    normal = predicted_auroc(energy.mean(axis=0), lesion, normal_variance=variance)[0]
    empirical = predicted_auroc_from(
        energy[:500], lesion, outside=np.zeros(500), pixels=30, ranks=[0]
    )[0]
    assert empirical == pytest.approx(measured, abs=0.02)
    assert normal < measured - 0.1
    with pytest.raises(DataError, match="energies"):
        predicted_auroc_from(energy[:, :5], lesion, outside=np.zeros(4000), pixels=30)


def test_small_lesions_want_more_capacity_than_large_ones():
    rng = np.random.default_rng(0)
    size = 16
    grid = np.fft.fftfreq(size)
    filter_ = 1 / (np.hypot(*np.meshgrid(grid, grid)) + 1 / size) ** 1.5
    noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(1500, size, size))) * filter_).real
    fitted = spectrum(0.005 * noise.reshape(1500, -1))
    best = []
    for scale in (1.0, 4.0, 16.0):
        lesion = blob_spectrum(fitted, scale_px=scale, contrast=0.1)
        best.append(int(np.argmax(predicted_auroc(fitted.eigenvalues, lesion))))
    assert best[0] > best[1] > best[2]


def test_nothing_left_is_chance_and_shapes_are_checked():
    lesion = LesionSpectrum(energy=np.ones(2), total=2.0, residual_variance=np.zeros(3))
    auroc = predicted_auroc([2.0, 1.0], lesion)
    assert auroc[-1] == 0.5
    assert auroc[0] > 0.5
    with pytest.raises(DataError, match="normal_variance"):
        predicted_auroc([2.0, 1.0], lesion, normal_variance=np.ones(2))
    flat = spectrum(np.random.default_rng(0).normal(size=(30, 10)))
    with pytest.raises(DataError, match="square"):
        blob_spectrum(flat, scale_px=2.0, contrast=0.1)
    square = spectrum(np.random.default_rng(0).normal(size=(30, 9)))
    with pytest.raises(SettingsError, match="components"):
        blob_spectrum(square, scale_px=2.0, contrast=0.1, components=10)
    with pytest.raises(DataError, match="positions"):
        blob_spectrum(square, scale_px=2.0, contrast=0.1, positions=np.zeros((3, 3)))


# -- lesion pass-through --------------------------------------------------------------------------


def test_pass_through_of_a_projection_is_the_lesions_share_and_s_times_one_minus_s():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(30, 6)))[0]
    x, delta = rng.normal(size=(2, 50, 30))
    found = pass_through(x @ basis @ basis.T, (x + delta) @ basis @ basis.T, delta)
    share = ((delta @ basis) ** 2).sum(axis=1) / (delta**2).sum(axis=1)
    np.testing.assert_allclose(found.along, share)
    np.testing.assert_allclose(found.across, share * (1 - share))


def test_pass_through_is_one_for_the_identity_and_nothing_for_a_constant():
    x, delta = np.random.default_rng(0).normal(size=(2, 4, 8, 8))
    rebuilt = pass_through(x, x + delta, delta)
    np.testing.assert_allclose(rebuilt.along, 1)
    np.testing.assert_allclose(rebuilt.across, 0, atol=1e-12)
    lost = pass_through(x, x, delta)
    assert not lost.along.any()
    assert not lost.across.any()


def test_pass_through_refuses_what_it_cannot_read():
    x = np.ones((2, 3))
    with pytest.raises(DataError, match="zero everywhere"):
        pass_through(x, x, np.zeros((2, 3)))
    with pytest.raises(DataError, match=r"\(N, ...\)"):
        pass_through(x, x, np.ones((2, 4)))
