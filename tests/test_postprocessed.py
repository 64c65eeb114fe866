"""Known truths of the chain of steps after a map, and of volumes that go through it whole."""

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from normalis import AnomalyDetector, scorers
from normalis.fitted import FittedDetector
from normalis.scorers.postprocessed import foreground, without_small

OFF = {"positive": False, "erode": 0, "prior_quantile": 0.0, "median": 0, "min_area": 0}


class Flat(nn.Module):
    """A method that expects a disc of brightness 0 in every image."""

    has_latent = False

    def reconstruct(self, x):
        return torch.where(torch.from_numpy(disc()), 0.0, -1.0).expand_as(x)

    def anomaly_map(self, x):
        return (x - self.reconstruct(x)).square().mean(1)


def disc(side=48):
    y, x = np.ogrid[:side, :side]
    return (y - side / 2) ** 2 + (x - side / 2) ** 2 < 20**2


def volume(depth=9):
    """Return slices (depth, 1, 48, 48) of a cylinder of brightness 0 on black."""
    slices = np.where(disc(), 0.0, -1.0)[None, None].repeat(depth, 0)
    return torch.from_numpy(slices).float()


def put(x, where, value):
    x[(where[0], 0, *where[1:])] = value
    return x


CUBE = (slice(3, 6), slice(20, 23), slice(20, 23))  # 3 x 3 x 3
SPECK = (slice(7, 8), slice(28, 30), slice(24, 26))  # 2 x 2 x 1
VOXEL = (slice(4, 5), slice(30, 31), slice(30, 31))


def read(x, *, whole=True, normal=None, **steps):
    scorer = scorers.build("postprocessed", **{**OFF, **steps})
    scorer.fit(Flat(), volume() if normal is None else normal)
    return scorer.read_volumes(Flat(), x, [len(x)] if whole else [])[1]


STEPS = [
    {"positive": True},
    {"erode": 6},
    {"prior_quantile": 0.9},
    {"median": 3},
    {"min_area": 8},
]


@pytest.mark.parametrize("step", [*STEPS[:3], STEPS[4]])
def test_a_bright_cube_stays(step):
    found = read(put(volume(), CUBE, 1.0), **step)
    assert (found[CUBE] == 1).all()
    assert found.sum() == 27


def test_a_median_keeps_the_middle_of_a_cube_and_drops_a_voxel():
    x = put(put(volume(), CUBE, 1.0), VOXEL, 1.0)
    found = read(x, median=3)
    assert found[4, 21, 21] == 1
    assert (found[VOXEL] == 0).all()
    assert found.sum() == 7, "the cube without its edges: 14 of 27 neighbours are needed"


def test_a_speck_is_dropped_by_its_size_and_a_line_through_slices_is_not():
    x = put(put(volume(), CUBE, 1.0), SPECK, 1.0)
    found = read(x, min_area=8)
    assert (found[SPECK] == 0).all()
    assert (found[CUBE] == 1).all()
    line = (slice(0, 9), slice(24, 25), slice(24, 25))
    x = put(volume(), line, 1.0)
    assert read(x, min_area=8).sum() == 9
    assert read(x, min_area=8, whole=False).sum() == 0, "a pixel in each slice by itself"


def test_a_dark_cube_is_gone_once_only_bright_counts():
    x = put(volume(), CUBE, -0.5)
    assert (read(x)[CUBE] > 0).all()
    assert read(x, positive=True).sum() == 0


def test_the_rim_of_the_foreground_and_the_background_are_left_out():
    edge = (slice(3, 6), slice(5, 8), slice(23, 26))  # the disc starts in row 5
    outside = (slice(3, 6), slice(1, 4), slice(1, 4))
    x = put(put(put(volume(), edge, 1.0), outside, 1.0), CUBE, 1.0)
    found = read(x, erode=6)
    assert (found[CUBE] == 1).all()
    assert (found[edge] == 0).all()
    assert (found[outside] == 0).all()


def test_the_foreground_has_no_holes():
    image = np.where(disc(), 0.5, -1.0)
    image[20:24, 20:24] = -1.0
    assert np.array_equal(foreground(image), disc())


def test_the_foreground_is_what_differs_from_an_even_margin():
    source = np.random.default_rng(0)
    noisy = np.where(disc(), 0.0, -1.0) + 0.02 * source.random((48, 48))
    noisy[0, 0] = -1.03  # one dark pixel does not make the rest bright
    assert np.array_equal(foreground(noisy), disc())
    assert np.array_equal(foreground(-noisy), disc()), "a bright background is one as well"
    assert foreground(source.random((48, 48))).all(), "no even margin, no background"


def test_where_an_image_ends_is_no_rim():
    x = torch.rand(2, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    assert torch.equal(read(x, erode=6), read(x))


def test_the_prior_is_of_the_whole_volume_where_it_is_one():
    """In a dark slice nothing is among the brightest tenth of the volume."""
    x = put(volume(), CUBE, 1.0)
    dim = put(x, (slice(0, 1), slice(20, 23), slice(30, 33)), -0.9)
    x[1:] = torch.where(x[1:] == 0, 0.5, x[1:])
    whole = read(dim, prior_quantile=0.5)
    assert whole[0].sum() == 0
    assert read(dim, prior_quantile=0.5, whole=False)[1].sum() > 0


def test_the_threshold_of_components_is_of_normal_images_alone():
    normal = volume()
    normal[:, :, 20:24, 20:24] = 0.25  # 16 of 2304 pixels
    scorer = scorers.build("postprocessed", **{**OFF, "min_area": 8, "rate": 0.02})
    assert scorer.fit(Flat(), normal).arrays["threshold"] == 0
    scorer = scorers.build("postprocessed", **{**OFF, "min_area": 8, "rate": 0.005})
    assert scorer.fit(Flat(), normal).arrays["threshold"] == pytest.approx(0.25)
    found = without_small(np.eye(6)[None], 0.5, 7)
    assert found.sum() == 0, "corners touch: one component of six"
    assert without_small(np.eye(6)[None], 0.5, 6).sum() == 6


def test_images_and_volumes_do_not_touch_each_other():
    x = torch.cat([put(volume(), CUBE, 1.0), put(volume(), VOXEL, 1.0), volume(1)])
    scorer = scorers.build("postprocessed").fit(Flat(), volume())
    _, together = scorer.read_volumes(Flat(), x, [9, 9, 1])
    alone = [scorer.read_volumes(Flat(), part, [len(part)])[1] for part in x.split([9, 9, 1])]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(scorer.read_volumes(Flat(), x, [1] * 19)[1], scorer.anomaly_map(Flat(), x))


def test_a_part_of_its_own_is_fitted_saved_and_compared_with_what_it_restores():
    from normalis import models

    model = models.build("vae", image_size=32, hidden_dim=8, latent_dim=3).eval()
    x = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    scorer = scorers.build("postprocessed", part="normalised", erode=1).fit(model, x)
    assert set(scorer.state()) == {"threshold", "part.mean"}
    again = scorers.build("postprocessed", part="normalised", erode=1)
    again.load_state(scorer.state())
    assert torch.equal(again.anomaly_map(model, x), scorer.anomaly_map(model, x))
    plain = models.build("intensity", image_size=32)
    assert "reconstructs" in scorers.build("postprocessed", part="native").supports(plain)
    assert scorers.build("postprocessed", part="native", positive=False).supports(plain) is None


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """Write twelve small volumes of noise, as NIfTI."""
    folder, source = tmp_path_factory.mktemp("volumes"), np.random.default_rng(0)
    for i in range(12):
        values = source.integers(20, 200, (16, 16, 7)).astype(np.uint8)
        nib.save(nib.Nifti1Image(values, np.eye(4)), folder / f"case{i:02}.nii.gz")
    return folder


def test_files_of_slices_go_through_the_chain_whole(volumes, tmp_path):
    """In calibration and in scoring alike, whatever batches they come in."""
    options = {"part": "l2", "positive": False, "erode": 0, "prior_quantile": 0.8, "min_area": 0}
    detector = AnomalyDetector(
        method="mean-image", image_size=16, scorer="postprocessed", scorer_options=options,
        calibration="split", random_state=0,
    ).fit(volumes)  # fmt: skip
    detector.save(tmp_path / "run")
    fitted = FittedDetector.load(tmp_path / "run")
    files = sorted(volumes.iterdir())
    scores = detector.anomaly_score(files)
    alone = np.concatenate([fitted.anomaly_score([file]) for file in files])
    np.testing.assert_allclose(scores, alone, rtol=1e-6)
    from normalis.scoring import BATCH_SIZE

    assert len(scores) == 12 * 7 > BATCH_SIZE, "more than a batch"
    pixels = np.stack([np.asarray(nib.load(f).dataobj) for f in files])
    by_slice = detector.anomaly_score(pixels.transpose(0, 3, 2, 1).reshape(-1, 16, 16))
    assert not np.allclose(np.sort(scores), np.sort(by_slice)), "no window reaches across slices"
    # Calibration saw them whole too: its scores are among those of the files.
    held = detector.fitted_.normal_scores
    assert np.isin(held.round(6), scores.round(6)).all()
