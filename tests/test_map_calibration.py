"""Calibrated maps: exact at any place, deaf to margins, and a lesion is found."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from normalis.calibration import maps as maps_module
from normalis.calibration.colours import ColourScale
from normalis.calibration.conformal import calibrate, realised_rate_interval
from normalis.calibration.maps import (
    BOUND,
    MapScale,
    MapSettings,
    border,
    fit_map_scale,
    join,
)
from normalis.errors import MetricError, SettingsError

SIDE = 32


def noise(rng, n, side=SIDE):
    """Return maps (n, side, side) of smooth noise, higher in the middle."""
    y, x = np.mgrid[:side, :side] / side - 0.5
    tissue = np.where(x**2 + y**2 < 0.14, 2.0, 0.2)
    return gaussian_filter(rng.gamma(1.0, size=(n, side, side)), (0, 1, 1)) * tissue


def with_strips(rng, maps, share):
    """Light a strip beside an edge in a share of the maps, as a letterbox does."""
    for one in maps:
        if rng.random() < share:
            start = rng.integers(1, 4)
            strip = np.zeros_like(one)
            strip[start : start + 2] = rng.uniform(300, 1200)
            one += np.rot90(strip, rng.integers(4))
    return maps


def with_lesion(rng, maps):
    """Plant a disc in each map's middle; return the maps and where the discs are."""
    y, x = np.mgrid[: maps.shape[1], : maps.shape[2]]
    low, high = 12, maps.shape[1] - 12
    where = np.array(
        [(y - rng.integers(low, high)) ** 2 + (x - rng.integers(low, high)) ** 2 < 9 for _ in maps]
    )
    return maps + where * rng.uniform(8, 20, (len(maps), 1, 1)), where


def coloured(scale, maps, quiet):
    return scale.apply(maps).max(axis=(1, 2)) > quiet


# --- the promise ---


@pytest.mark.parametrize("strips", [0.0, 0.1])
def test_normal_images_are_coloured_as_often_as_promised_on_average(strips):
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(120):
        maps = with_strips(rng, noise(rng, 29 + 40, 16), strips)
        scale, own = fit_map_scale(maps[:29], np.arange(29))
        found = ColourScale.from_calibrated(own, 0.2)
        rates.append(coloured(scale, maps[29:], found.quiet).mean())
    error = np.std(rates) / np.sqrt(len(rates))
    assert np.mean(rates) <= 0.2 + 3 * error
    assert np.mean(rates) >= 0.1  # nor does it promise and keep silent


def test_the_promise_holds_for_patients_with_unequal_numbers_of_images():
    rng = np.random.default_rng(1)
    flags = []
    for _ in range(150):
        unit = np.repeat(np.arange(20), rng.integers(1, 6, 20))
        height = rng.lognormal(0, 1, 20)  # what a patient's images have in common
        keep = unit < 19
        maps = noise(rng, len(unit), 16) * height[unit, None, None]
        scale, own = fit_map_scale(maps[keep], unit[keep])
        quiet = ColourScale.from_calibrated(own, 0.2, unit=unit[keep]).quiet
        flags.append(coloured(scale, maps[~keep], quiet).mean())
    error = np.std(flags) / np.sqrt(len(flags))
    assert np.mean(flags) <= 0.2 + 3 * error


def test_held_out_images_are_no_lower_than_if_the_new_one_judged_them_too():
    """The step of the proof: the symmetric values, K judges for each of K + 1, lie below."""
    rng, settings = np.random.default_rng(2), MapSettings()
    pool = np.float32(with_strips(rng, noise(rng, 12, 16), 0.3))
    scale, own = fit_map_scale(pool[:11], np.arange(11))
    highest = maps_module._highest_by_unit(pool, np.arange(12), settings)
    powers = np.array([maps_module._power_mean(one[None], settings) for one in pool])

    def symmetric(k):
        others = np.arange(12) != k
        by_all = maps_module._scale(powers[others].sum(0), highest[others], 11)
        return maps_module._calibrated(pool[k : k + 1], by_all, settings)[0]

    np.testing.assert_allclose(symmetric(11), scale.apply(pool[11]), rtol=1e-5)
    for k in range(11):
        assert (own[k] >= symmetric(k) - 1e-6).all()


def test_an_image_alone_is_judged_by_the_others_as_a_new_one_is():
    rng = np.random.default_rng(3)
    maps = noise(rng, 10, 16)
    _, own = fit_map_scale(maps, np.arange(10))
    loud = maps.copy()
    loud[0] *= 100  # what one image has changes how all others are judged, never itself
    _, other = fit_map_scale(loud, np.arange(10))
    assert other[0].max() > own[0].max()
    assert (other[1:] <= own[1:] + 1e-6).all()


# --- what it is for ---


def test_a_lesion_is_found_beside_normals_with_bright_margins():
    rng = np.random.default_rng(4)
    held = with_strips(rng, noise(rng, 80), 0.1)
    normal = with_strips(rng, noise(rng, 200), 0.1)
    lesions, where = with_lesion(rng, with_strips(rng, noise(rng, 200), 0.1))
    raw = ColourScale.from_maps(held)
    assert (raw.smooth(lesions)[where].reshape(-1) > raw.quiet).mean() < 0.05  # as it was
    scale, own = fit_map_scale(held, np.arange(80))
    quiet = ColourScale.from_calibrated(own).quiet
    calibrated = scale.apply(lesions)
    hit = np.array([one[disc].max() > quiet for one, disc in zip(calibrated, where, strict=True)])
    assert hit.mean() > 0.95
    _, high = realised_rate_interval(80, 200, 0.05)
    assert coloured(scale, normal, quiet).mean() <= high
    top = [disc.ravel()[one.argmax()] for one, disc in zip(calibrated, where, strict=True)]
    assert np.mean(top) > 0.9


def test_thirty_images_are_enough():
    rng = np.random.default_rng(5)
    held = with_strips(rng, noise(rng, 30), 0.1)
    scale, own = fit_map_scale(held, np.arange(30))
    found = ColourScale.from_calibrated(own)
    assert found.rate == 0.05
    lesions, where = with_lesion(rng, noise(rng, 100))
    calibrated = scale.apply(lesions)
    hit = [one[disc].max() > found.quiet for one, disc in zip(calibrated, where, strict=True)]
    assert np.mean(hit) > 0.8


def test_one_place_contributes_no_more_than_the_bound(rng):
    maps = noise(rng, 20)
    scale, _ = fit_map_scale(maps, np.arange(20))
    maps[0, 16, 16] = 1e6
    one = scale.apply(maps[0])
    maps[0, 12:20, 12:20] = 1e6
    area = scale.apply(maps[0])
    assert one.max() < area.max() <= BOUND + 1e-6
    assert one.max() < 0.6 * area.max()  # an area stands out, a pixel does not


def test_the_edge_counts_less_and_the_margin_left_out_not_at_all(rng):
    maps = np.ones((20, SIDE, SIDE))
    scale, _ = fit_map_scale(maps, np.arange(20))
    shown = scale.apply(maps[0])
    assert shown[0, 16] < 0.6 * shown[16, 16]
    assert shown[4, 16] > 0.9 * shown[16, 16]
    cropped, _ = fit_map_scale(maps, np.arange(20), MapSettings(left_out=0.25))
    maps[0, :8] = 1e6  # all of it in what is left out
    np.testing.assert_allclose(cropped.apply(maps[0]), cropped.apply(maps[1]))


def test_scale_of_the_method_does_not_matter(rng):
    maps = noise(rng, 20)
    ours, theirs = (fit_map_scale(maps * k, np.arange(20))[1] for k in (1, 1e5))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


@pytest.mark.parametrize("shape", [(16, 16), (7, 7), (40, 24)])
def test_any_size_of_map(rng, shape):
    maps = rng.random((12, *shape))
    scale, own = fit_map_scale(maps, np.arange(12))
    assert own.shape == maps.shape
    assert scale.apply(maps[0]).shape == shape
    assert np.isfinite(own).all()


def test_maps_that_are_zero_everywhere_stay_so():
    scale, own = fit_map_scale(np.zeros((20, 8, 8)), np.arange(20))
    assert not own.any()
    lit = np.zeros((8, 8))
    lit[2:6, 2:6] = 1.0
    assert scale.apply(lit).max() > 1  # the first thing ever seen there


# --- several methods ---


def test_joined_maps_keep_the_promise_and_find_what_either_finds():
    rng = np.random.default_rng(7)
    rates, hits = [], []
    for _ in range(60):
        parts = [noise(rng, 69, 16), 50 * noise(rng, 69, 8) ** 2]
        fitted = [fit_map_scale(part[:29], np.arange(29)) for part in parts]
        own = join([own for _, own in fitted], (16, 16))
        quiet = ColourScale.from_calibrated(own, 0.1).quiet
        new = [scale.apply(part[29:]) for (scale, _), part in zip(fitted, parts, strict=True)]
        rates.append((join(new, (16, 16)).max(axis=(1, 2)) > quiet).mean())
        parts[1][29:, 3:5, 3:5] += 5000  # one method sees something
        new[1] = fitted[1][0].apply(parts[1][29:])
        hits.append((join(new, (16, 16)).max(axis=(1, 2)) > quiet).mean())
    assert np.mean(rates) <= 0.1 + 3 * np.std(rates) / np.sqrt(60)
    assert np.mean(hits) > 0.95


# --- p-values, borders, what is stored, what is refused ---


def test_p_values_of_peaks_by_hand():
    calibration = calibrate(np.arange(4.0), patients=["a", "a", "b", "c"], map_maxima=[1, 3, 2, 5])
    np.testing.assert_allclose(
        calibration.map_p_values([0.5, 2.0, 3.0, 6.0]),
        [(1 + 3) / 4, (1 + 0.5 + 1 + 1) / 4, (1 + 0.5 + 1) / 4, 1 / 4],
    )
    with pytest.raises(SettingsError, match="map_maxima"):
        calibrate(np.arange(4.0)).map_p_values([1.0])
    with pytest.raises(MetricError, match="finite"):
        calibration.map_p_values([np.nan])


def test_few_units_give_a_level_and_no_promise():
    unit = np.repeat(np.arange(10), 20)
    maxima = np.arange(200.0)
    scale = ColourScale.from_maxima(maxima, unit=unit)
    assert scale.rate is None
    assert (maxima > scale.quiet).mean() == pytest.approx(0.05)


def test_units_weigh_alike_in_the_level():
    unit = np.array([0] * 61 + list(range(1, 20)))  # one patient has most of the images
    maxima = np.concatenate([np.full(61, 9.0), np.ones(19)])
    assert ColourScale.from_maxima(maxima, 0.2, unit=unit).quiet == 1.0
    assert ColourScale.from_maxima(maxima, 0.2).quiet == 9.0


def test_the_border_is_the_outer_share():
    outer = border((100, 50))
    assert outer[:5].all()
    assert outer[:, :2].all()
    assert not outer[5:95, 3:47].any()
    assert outer.mean() == pytest.approx(1 - 0.9 * 0.92)  # 2 of 50 columns at each side


def test_restored_as_it_was(rng):
    maps = noise(rng, 12)
    scale, _ = fit_map_scale(maps, np.arange(12), MapSettings(left_out=0.1))
    again = MapScale.restore(scale.to_dict(), scale.state())
    np.testing.assert_array_equal(again.apply(maps), scale.apply(maps))


def test_what_cannot_be_calibrated_is_refused(rng):
    with pytest.raises(MetricError, match="at least one map"):
        fit_map_scale(np.zeros((0, 8, 8)), [])
    with pytest.raises(MetricError, match="one unit for each"):
        fit_map_scale(np.zeros((3, 8, 8)), [0, 1])
    with pytest.raises(MetricError, match="finite"):
        fit_map_scale(np.full((3, 8, 8), np.nan), [0, 1, 2])
    scale, _ = fit_map_scale(noise(rng, 3), [0, 1, 2])
    with pytest.raises(MetricError, match="as those calibrated on"):
        scale.apply(np.zeros((8, 8)))
    with pytest.raises(SettingsError, match="share of the image"):
        MapSettings(left_out=0.5)
