"""Every family: pure, seeded, in range, of the energy stated, and changed where its mask says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from normalis.errors import DataError, SettingsError
from normalis.research.synthetic import SCALES, SYNTHETIC, synthesise
from normalis.research.synthetic.energy import match_energy, normal_energy
from normalis.research.synthetic.region import soft_region

LOCAL = [name for name in SYNTHETIC if SCALES[name] < 1]


def normals(n=24, size=32, seed=0):
    """Smooth discs of differing radius with fine structure, on black."""
    rng = np.random.default_rng(seed)
    grid = np.hypot(*np.meshgrid(np.arange(size) - size / 2, np.arange(size) - size / 2))
    radius = rng.uniform(0.3, 0.45, (n, 1, 1)) * size
    body = 1 / (1 + np.exp(grid - radius))
    detail = gaussian_filter(rng.standard_normal((n, size, size)), (0, 1, 1))
    return (body * (0.5 + 0.3 * detail / 0.28 * 0.5)).clip(0, 1).astype(np.float32)


@pytest.fixture(scope="module")
def images():
    return normals()


def test_every_family_has_a_scale_and_scales_span_the_image():
    assert list(SYNTHETIC) == list(SCALES)
    assert min(SCALES.values()) <= 1 / 16
    assert max(SCALES.values()) == 1.0


@pytest.mark.parametrize("family", SYNTHETIC)
def test_a_family_is_pure_and_seeded(family, images):
    before = images.copy()
    first, mask = synthesise(family, images, seed=3)
    again, mask_again = synthesise(family, images, seed=3)
    other, _ = synthesise(family, images, seed=4)
    assert (images == before).all()
    assert (first == again).all()
    assert (mask == mask_again).all()
    assert (first != other).any()
    assert first.shape == mask.shape == images.shape
    assert first.dtype == np.float32
    assert mask.dtype == bool
    assert 0 <= first.min() <= first.max() <= 1


@pytest.mark.parametrize("family", SYNTHETIC)
def test_a_family_changes_images_by_the_energy_stated_and_never_by_more(family, images):
    contrast = 0.15
    drawn, _ = synthesise(family, images, contrast=contrast)
    wanted = contrast**2 * normal_energy(images)
    got = ((drawn.astype(np.float64) - images) ** 2).sum(axis=(1, 2))
    assert got.max() < 1.15 * wanted
    if family not in {"blur", "warp", "pasted-patch"}:  # these take only what the image has
        assert np.median(got) > 0.85 * wanted
    assert got.min() > 0


@pytest.mark.parametrize("family", LOCAL)
def test_a_local_family_changes_most_inside_its_mask(family, images):
    drawn, mask = synthesise(family, images)
    change = (drawn - images) ** 2
    inside = (change * mask).sum() / change.sum()
    assert mask.any(axis=(1, 2)).all()
    assert inside > 0.5 > 2 * mask.mean()


def test_signs_and_structure_are_as_named(images):
    def change(family):
        return synthesise(family, images)[0] - images

    assert change("small-bright").min() >= 0 >= change("small-dark").max()
    assert change("large-bright").min() >= 0 >= change("large-dark").max()
    assert abs(change("texture").mean()) < 0.1 * change("texture").std()
    drawn, mask = synthesise("blur", images)
    roughness = [np.abs(np.diff(x, axis=1))[mask[:, 1:]].mean() for x in (drawn, images)]
    assert roughness[0] < 0.8 * roughness[1]
    brighter = change("photometric").mean(axis=(1, 2)) > 0
    assert 0 < brighter.mean() < 1


@given(scale=st.floats(2, 20), sharpness=st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_a_region_has_its_width_at_half_maximum(scale, sharpness):
    profile = soft_region(np.array([[32, 32]]), 65, scale_px=scale, sharpness=sharpness)[0, 32]
    assert abs((profile >= 0.5).sum() - scale) <= 1.001
    assert profile[32] == 1.0


def test_energy_stops_at_what_the_family_can_do(images):
    same = match_energy(images, lambda a: images + 1e-4 * a, contrast=0.5)
    assert np.abs(same - images).max() <= 1.01e-4


def test_what_cannot_be_is_said(images):
    with pytest.raises(SettingsError, match="did you mean 'blur'"):
        synthesise("blurr", images)
    with pytest.raises(DataError, match="N >= 2"):
        synthesise("blur", images[:1])
    with pytest.raises(DataError, match="in \\[0, 1\\]"):
        synthesise("blur", images * 2 - 1)
    with pytest.raises(DataError, match="differ"):
        synthesise("blur", np.full((3, 8, 8), 0.5))
    with pytest.raises(SettingsError, match="contrast"):
        synthesise("blur", images, contrast=0.0)
    with pytest.raises(SettingsError, match="scale_px"):
        soft_region(np.zeros((1, 2), dtype=int), 8, scale_px=0.0)
