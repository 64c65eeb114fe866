"""The phantom's promises: known dimension, seeds, lesions inside the brain, a readable folder."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normalis.datasets import open_dataset
from normalis.datasets.phantom import (
    FACTORS,
    LESIONS,
    PhantomSettings,
    add_lesions,
    generate,
    render,
    write_demo,
)
from normalis.datasets.phantom_films import write_films
from normalis.errors import DataError, SettingsError
from normalis.images import probe, read_frames


def test_images_are_in_range_and_have_the_stated_shapes():
    drawn = generate(70, PhantomSettings(image_size=32, factors=5, noise=0.05))
    assert drawn.images.shape == drawn.brain.shape == (70, 32, 32)
    assert drawn.images.dtype == np.float32
    assert drawn.factors.shape == (70, 5)
    assert drawn.names == FACTORS[:5]
    assert drawn.images.min() >= 0
    assert drawn.images.max() <= 1


def test_same_seed_same_images_and_the_first_do_not_depend_on_the_number():
    few, many = generate(3, PhantomSettings(noise=0.1)), generate(80, PhantomSettings(noise=0.1))
    np.testing.assert_array_equal(few.images, many.images[:3])
    other = generate(3, PhantomSettings(noise=0.1, seed=1))
    assert not np.array_equal(few.images, other.images)


def test_noise_does_not_change_the_factors():
    np.testing.assert_array_equal(
        generate(4).factors, generate(4, PhantomSettings(noise=0.2)).factors
    )


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 16), st.integers(0, 100))
def test_every_factor_moves_the_image_in_a_direction_of_its_own(factors, seed):
    """The Jacobian has full rank: the intrinsic dimension is the number of factors."""
    at = np.random.default_rng(seed).uniform(-0.99, 0.99, size=factors)
    steps = 4e-3 * np.eye(factors)
    up, down = render(at + steps)[0], render(at - steps)[0]
    values = np.linalg.svd((up - down).reshape(factors, -1) / 8e-3, compute_uv=False)
    assert values[-1] > 5e-3 * values[0]
    assert values[-1] > 0.05


@pytest.mark.parametrize("factors", [1, 3])
def test_nearest_neighbours_see_the_dimension_too(factors):
    """Levina and Bickel's estimator (NIPS 2004), which knows nothing of how images were made."""
    from scipy.spatial import cKDTree

    images = generate(1000, PhantomSettings(image_size=32, factors=factors)).images
    near = cKDTree(images.reshape(1000, -1)).query(images.reshape(1000, -1), 9)[0][:, 1:]
    estimate = np.mean(1 / np.log(near[:, -1:] / near[:, :-1]).mean(axis=1)) * 6 / 7
    assert abs(estimate - factors) < 0.15 * factors


def test_the_map_from_factors_to_images_is_smooth():
    """Halving the step quarters the error of a central difference, as for any smooth function."""
    rng = np.random.default_rng(0)
    at, along = rng.uniform(-0.8, 0.8, size=(1, 16)), rng.normal(size=(1, 16))

    def slope(h):
        return (render(at + h * along)[0] - render(at - h * along)[0]).astype(float) / (2 * h)

    exact = slope(0.005)
    coarse, fine = (np.abs(slope(h) - exact).max() for h in (0.04, 0.02))
    assert fine < 0.4 * coarse


def test_unvaried_factors_stay_at_their_mean():
    np.testing.assert_array_equal(render([[0.3]])[0], render([[0.3] + 15 * [0.0]])[0])


def test_1000_images_take_about_a_second():
    start = time.process_time()
    generate(1000)
    assert time.process_time() - start < 4


@pytest.mark.parametrize("kind", LESIONS)
def test_lesions_change_the_image_where_the_mask_is_and_inside_the_brain(kind):
    drawn = generate(30)
    images, masks = add_lesions(
        drawn.images, kind=kind, scale_px=5, contrast=0.3, seed=0, brain=drawn.brain
    )
    assert masks.any(axis=(1, 2)).all()
    assert not (masks & ~drawn.brain).any()
    np.testing.assert_array_equal(images[~drawn.brain], drawn.images[~drawn.brain])
    change = np.abs(images - drawn.images)
    assert change[masks].mean() > 10 * change[~masks].mean()
    assert images.min() >= 0
    assert images.max() <= 1


def test_lesions_without_a_brain_lie_inside_every_brain():
    drawn = generate(200, PhantomSettings(factors=16))
    _, masks = add_lesions(drawn.images, kind="dark", scale_px=4, contrast=0.3, seed=3)
    assert masks.any(axis=(1, 2)).all()
    assert not (masks & ~drawn.brain).any()


def test_lesion_area_grows_with_its_scale():
    images = np.full((200, 64, 64), 0.5, dtype=np.float32)
    brain = np.ones(images.shape, dtype=bool)
    areas = [
        add_lesions(images, kind="bright", scale_px=r, contrast=0.2, seed=0, brain=brain)[1].mean()
        for r in (3, 6)
    ]
    assert 3 < areas[1] / areas[0] < 4.5


def test_dark_is_darker_and_bright_is_brighter():
    images = np.full((5, 64, 64), 0.5, dtype=np.float32)
    for kind, sign in (("bright", 1), ("dark", -1)):
        changed, masks = add_lesions(images, kind=kind, scale_px=5, contrast=0.2, seed=0)
        assert np.all(sign * (changed - images)[masks] > 0.09)


@pytest.mark.parametrize(
    "wrong",
    [{"factors": 0}, {"factors": 17}, {"image_size": 8}, {"noise": -1.0}, {"noise": np.nan}],
)
def test_settings_out_of_range(wrong):
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        PhantomSettings(**wrong)


def test_wrong_arguments():
    images = np.zeros((2, 16, 16))
    with pytest.raises(SettingsError, match="kind must be one of bright"):
        add_lesions(images, kind="blue", scale_px=1, contrast=1, seed=0)
    with pytest.raises(SettingsError, match="positive"):
        add_lesions(images, kind="dark", scale_px=0, contrast=1, seed=0)
    with pytest.raises(SettingsError, match=r"\(N, S, S\)"):
        add_lesions(images[0], kind="dark", scale_px=1, contrast=1, seed=0)
    with pytest.raises(SettingsError, match="at least 1"):
        generate(0)
    with pytest.raises(SettingsError, match="1 to 16"):
        render(np.zeros((2, 17)))


def test_demo_folder_opens_as_a_data_set_with_masks(tmp_path):
    folder = write_demo(tmp_path / "demo data", train=6, normal=4, anomalous=7, image_size=32)
    data = open_dataset(folder)
    assert data.layout == "MVTec/BMAD"
    assert data.counts() == {
        ("train", "normal"): 6,
        ("test", "normal"): 4,
        ("test", "anomalous"): 7,
    }
    assert all(s.mask for s in data.samples if s.is_anomalous)
    assert data.notes == ()
    assert [p.name for p in tmp_path.iterdir()] == ["demo data"]


def test_demo_never_overwrites(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="exists already"):
        write_demo(tmp_path, train=1, normal=1, anomalous=1)


def test_generated_films_are_read_as_films_of_patients(tmp_path):
    files = write_films(tmp_path / "films", patients=4, with_lesions=1, image_size=32)
    data = open_dataset(files)
    frames = [next(read_frames(s.path)) for s in data.samples]
    assert len(frames) == 8
    assert len({f.header["patient_id"] for f in frames}) == 4
    assert {f.header["view"] for f in frames} == {"PA", "AP"}
    assert {probe(s.path).bits for s in data.samples} == {12}
    healthy = write_films(tmp_path / "healthy", patients=4, image_size=32)
    same = [next(read_frames(s.path)).pixels for s in open_dataset(healthy).samples]
    equal = [np.array_equal(a.pixels, b) for a, b in zip(frames, same, strict=True)]
    assert equal == [True] * 6 + [False] * 2
    with pytest.raises(DataError, match="exists already"):
        write_films(tmp_path / "films", patients=1)
