"""Known truths of the methods on features of a frozen network.

Where a truth is about statistics, the features are drawn here and the network is left out: `maps`
of the model is replaced.
"""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.covariance import LedoitWolf
from torch.nn import functional as F

from normalis import models
from normalis.errors import DataError, SettingsError
from normalis.models import features
from normalis.models.base import AnomalyModel
from normalis.models.feature_ae import cell_similarity
from normalis.models.feature_gaussian import whitening
from normalis.models.feature_knn import nearest
from normalis.models.padim import shrunk_covariance
from normalis.models.spade import compare
from normalis.scorers import build as build_scorer
from normalis.training import loop as training

TRAINED = ("feature-ae", "uniad", "hvq-trans")


def numbered(n):
    """Return images that are told apart by their first pixel, 128 x 128."""
    x = torch.zeros(n, 1, 128, 128)
    x[:, 0, 0, 0] = torch.arange(n)
    return x


def with_features(model, monkeypatch, **maps):
    """Let a model see given features, by tap (N, channels, h, w), of `numbered` images."""

    def given(x, taps=None):
        rows = x[:, 0, 0, 0].long()
        return {name: maps[name][rows] for name in (taps or model.taps)}

    monkeypatch.setattr(model, "maps", given)
    return model


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def all_taps(n, seed=0, **own):
    """Random maps of every tap of the default network."""
    taps = {"a": (24, 32), "b": (40, 16), "c": (112, 8), "g": (320, 4)}
    maps = {t: drawn(n, c, s, s, seed=seed + i) for i, (t, (c, s)) in enumerate(taps.items())}
    return maps | own


# ---------------------------------------------------------------- feature-gaussian


def test_gaussian_features_give_a_chi_squared_score(monkeypatch):
    mix = 0.1 * drawn(40, 40, seed=9) + torch.eye(40)  # correlated, not singular
    b = torch.einsum("nchw,dc->ndhw", drawn(6000, 40, 1, 1), mix) + 3
    model = models.build("feature-gaussian", taps="b", bank=6000)
    with_features(model, monkeypatch, b=b)
    model.fit(numbered(6000)[:4000])
    score = model.anomaly_score(numbered(6000)[4000:]).numpy()
    assert score.mean() == pytest.approx(40, rel=0.05)
    assert score.var() == pytest.approx(80, rel=0.2)
    assert stats.kstest(score, stats.chi2(40).cdf).statistic < 0.06, "shrinkage takes a percent"


def test_the_gaussian_score_does_not_depend_on_units():
    rows = drawn(500, 6).double().float()
    scale = torch.tensor([1e-3, 1.0, 50.0, 2.0, 1e3, 7.0])
    scores = []
    for units in (torch.ones(6), scale):
        mean, w = whitening(rows * units)
        scores.append(((rows * units - mean) @ w.T).square().sum(1))
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["feature-knn", "feature-gaussian"])
def test_scores_of_pooled_features_do_not_saturate(method, monkeypatch):
    far = torch.tensor([1.0, 10.0, 100.0, 1e3, 1e4]).view(5, 1, 1, 1)
    b = torch.cat([drawn(50, 40, 2, 2), far * drawn(1, 40, 1, 1, seed=3).expand(5, 40, 2, 2)])
    model = with_features(models.build(method, taps="b"), monkeypatch, b=b)
    model.fit(numbered(55)[:50])
    score = model.anomaly_score(numbered(55)[50:])
    assert (score[1:] > 2 * score[:-1]).all()


# ---------------------------------------------------------------- nearest normal images


def test_nearest_is_exact_in_large_banks(monkeypatch):
    monkeypatch.setattr("normalis.models.feature_knn._CHUNK", 64)
    bank, v = drawn(300, 20) + 100, drawn(7, 20, seed=1) + 100
    v[0] = bank[123]
    distances, numbers = nearest(v, bank, 5)
    full = (v[:, None].double() - bank.double()).norm(dim=2)
    expected = full.topk(5, largest=False)
    assert torch.equal(numbers, expected.indices)
    torch.testing.assert_close(distances.double(), expected.values, rtol=1e-5, atol=1e-6)
    assert distances[0, 0] == 0
    assert numbers[0, 0] == 123


@pytest.mark.parametrize("method", ["feature-knn", "spade"])
def test_similar_names_the_images_of_the_fit(method, monkeypatch):
    maps = all_taps(40)
    model = with_features(models.build(method, bank=20), monkeypatch, **maps)
    model.fit(numbered(40), seed=3)
    rows = model.fitted("rows")
    assert len(rows.unique()) == 20
    numbers, distances = model.similar(numbered(40)[rows], k=2)
    assert torch.equal(numbers[:, 0], rows), "each is most similar to itself"
    assert (distances[:, 0] < 1e-3).all()
    assert (distances[:, 1] > distances[:, 0]).all()
    same = models.build(method, bank=20)
    assert torch.equal(with_features(same, monkeypatch, **maps).fit(numbered(40), seed=3)
                       .fitted("rows"), rows)  # fmt: skip


def test_the_map_of_pooled_features_lies_where_they_differ(monkeypatch):
    b = drawn(31, 40, 16, 16) * 0.1
    b[30, :, 3, 12] += 20
    for method in ("feature-knn", "feature-gaussian"):
        model = with_features(models.build(method, taps="b"), monkeypatch, b=b)
        model.fit(numbered(31)[:30])
        anomaly_map = model.anomaly_map(numbered(31)[30:])[0]
        place = divmod(int(anomaly_map.argmax()), 128)
        assert (place[0] // 8, place[1] // 8) == (3, 12)


# ---------------------------------------------------------------- spade


def brute_force(cells, others, window, count):
    h, w, _ = cells.shape
    out = torch.empty(h, w)
    for y, x in itertools.product(range(h), range(w)):
        near = others[:, max(0, y - window) : y + window + 1, max(0, x - window) : x + window + 1]
        distances = (near - cells[y, x]).norm(dim=3).flatten()
        out[y, x] = distances.topk(count, largest=False).values.mean()
    return out


@pytest.mark.parametrize(("window", "count"), [(0, 1), (1, 3), (2, 4)])
def test_compare_is_the_search_that_it_says(window, count):
    cells, others = drawn(5, 7, 6), drawn(4, 5, 7, 6, seed=1)
    found = compare(cells, others, window=window, nearest=count)
    torch.testing.assert_close(
        found, brute_force(cells, others, window, count), rtol=1e-4, atol=1e-4
    )


def test_a_displaced_cell_stands_out_by_its_distance(monkeypatch):
    """A copy of a normal image but for one cell: 0 everywhere else, its own distance there."""
    b = torch.zeros(13, 40, 16, 16)
    b[:, 0] = 1.0  # every cell of every image alike
    b[12, :, 5, 9] = 0
    b[12, 1, 5, 9] = 3.0  # at a right angle; its length does not matter
    model = models.build("spade", taps="b", neighbours=12, share=1e-4)
    with_features(model, monkeypatch, **all_taps(13, b=b)).fit(numbered(13)[:12])
    grid = model._grid(numbered(13)[12:])[0]
    assert grid[5, 9] == pytest.approx(2**0.5, abs=2e-3)
    grid[5, 9] = 0
    assert grid.abs().max() < 2e-2, "half precision"
    assert model.anomaly_score(numbered(13)[12:]).item() == pytest.approx(2**0.5, abs=2e-3)


def test_a_displacement_within_the_window_is_normal(monkeypatch):
    b = F.normalize(drawn(1, 40, 16, 16), dim=1).expand(12, -1, -1, -1)
    moved = b[:1].roll((1, -1), (2, 3))
    maps = all_taps(13, b=torch.cat([b, moved]))
    for window, least in ((1, 0.0), (0, 0.9)):
        model = models.build("spade", taps="b", neighbours=12, window=window)
        with_features(model, monkeypatch, **maps).fit(numbered(13)[:12])
        inside = model._grid(numbered(13)[12:])[0, 1:-1, 1:-1]
        assert least - 1e-3 <= inside.min() <= inside.max() < (0.05 if window else 2)


def test_principal_directions_keep_distances(monkeypatch):
    maps = all_taps(30)
    grids = []
    for dims in (0, 176):
        model = with_features(models.build("spade", dims=dims), monkeypatch, **maps)
        grids.append(model.fit(numbered(30)[:25])._grid(numbered(30)[25:]))
    torch.testing.assert_close(grids[0], grids[1], rtol=5e-3, atol=5e-3)


# ---------------------------------------------------------------- padim


def test_shrinkage_is_ledoit_and_wolfs():
    rows = drawn(3, 40, 12).double() @ drawn(12, 12, seed=1).double()
    centred = rows - rows.mean(1, keepdim=True)
    found = shrunk_covariance(centred)
    for ours, sample in zip(found, rows.numpy(), strict=True):
        np.testing.assert_allclose(ours, LedoitWolf().fit(sample).covariance_, rtol=1e-8)


def test_padims_map_of_gaussian_cells_has_the_mean_d(monkeypatch):
    b = drawn(900, 40, 4, 4) * 7 + 2
    model = models.build("padim", taps="b", dims=12, image_size=32)
    with_features(model, monkeypatch, b=b).fit(numbered(900)[:700])
    grid = model._grid(numbered(900)[700:])
    assert grid.shape == (200, 4, 4)
    assert grid.mean().item() == pytest.approx(12, rel=0.05)


def test_padims_displaced_cell_stands_out_by_its_mahalanobis_distance(monkeypatch):
    b = drawn(500, 40, 4, 4)
    b[499] = b[:499].mean(0)
    step = drawn(40, seed=5)
    b[499, :, 1, 2] += step
    model = models.build("padim", taps="b", dims=40, image_size=32, share=1e-3)
    with_features(model, monkeypatch, b=b).fit(numbered(500)[:499])
    grid = model._grid(numbered(500)[499:])[0]
    cell = b[:499, :, 1, 2].double()
    spread = cell.std(0, correction=0)
    covariance = LedoitWolf().fit((cell / spread).numpy()).covariance_
    expected = (step / spread).numpy() @ np.linalg.solve(covariance, (step / spread).numpy())
    assert grid[1, 2].item() == pytest.approx(expected, rel=0.01)
    grid[1, 2] = 0
    assert grid.max() < 0.01
    assert model.anomaly_score(numbered(500)[499:]).item() == pytest.approx(expected, rel=0.01)


def test_padim_bears_cells_that_never_vary(monkeypatch):
    b = drawn(20, 40, 4, 4)
    b[:, :, 0, 0] = 1.5
    model = models.build("padim", taps="b", dims=40, image_size=32)
    with_features(model, monkeypatch, b=b).fit(numbered(20)[:19])
    grid = model._grid(numbered(20)[19:])
    assert torch.isfinite(grid).all()
    assert grid[0, 0, 0] < 1


# ---------------------------------------------------------------- what all share


@pytest.mark.parametrize(
    "method",
    ["feature-knn", "feature-gaussian", "spade", "padim", "feature-ae", "uniad", "hvq-trans"],
)
def test_the_footprint_is_what_the_run_takes(method, monkeypatch):
    maps = all_taps(30)
    options = {"steps": 2} if method in TRAINED else {}
    model = with_features(models.build(method, bank=20, **options), monkeypatch, **maps)
    said = model.footprint(30)
    held = sum(v.numel() * v.element_size() for v in model.fit(numbered(30)).state().values())
    assert held == pytest.approx(said.run, rel=0.15)
    assert "in the run" in str(said)


def test_methods_look_at_the_size_that_the_network_sees_best():
    assert models.model_class("spade").default_image_size() == 128
    assert models.model_class("ae-u").default_image_size() == 64
    assert models.build("padim").settings.image_size == 128


def test_scores_and_maps_of_one_pass_are_those_of_two():
    x = 2 * torch.rand(14, 1, 32, 32, generator=torch.Generator().manual_seed(0)) - 1
    for method in ("spade", "padim"):
        model = models.build(method, image_size=32).fit(x[:10])
        score, anomaly_map = model.score_and_map(x[10:])
        torch.testing.assert_close(score, model.anomaly_score(x[10:]))
        torch.testing.assert_close(anomaly_map, model.anomaly_map(x[10:]))
        assert type(model).score_and_map is not AnomalyModel.score_and_map
        read, shown = build_scorer("native").read(model, x[10:])
        assert torch.equal(read, score)
        assert torch.equal(shown, anomaly_map)


def test_the_subset_is_drawn_by_the_seed():
    first = features.random_subset(100, 10, 0)
    assert torch.equal(first, features.random_subset(100, 10, 0))
    assert not torch.equal(first, features.random_subset(100, 10, 1))
    assert torch.equal(features.random_subset(5, 10, 0), torch.arange(5))


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("spade", {"taps": "b+z"}, "taps of efficientnet-lite0 are a, b, c, g, got 'z'"),
        ("spade", {"taps": "b+b"}, "taps must differ, got 'b\\+b'"),
        ("spade", {"share": 0.0}, r"share must be in \(0, 1\]"),
        ("spade", {"reading": "both"}, "reading must be one of map, image"),
        ("spade", {"stride": 256}, "stride must be at most image_size = 128"),
        ("padim", {"dims": 600}, "dims must be at most 512, got 600"),
        ("feature-knn", {"bank": 0}, "bank must be at least 1"),
        ("feature-knn", {"backbone": "resnet"}, "backbone must be one of efficientnet-lite0"),
    ],
)
def test_settings_are_checked(method, options, message):
    with pytest.raises(SettingsError, match=message):
        models.build(method, **options)


@pytest.mark.parametrize(
    "method",
    ["feature-knn", "feature-gaussian", "spade", "padim", "feature-ae", "uniad", "hvq-trans"],
)
def test_too_few_images_are_refused(method):
    with pytest.raises(DataError, match=f"{method} needs at least"):
        models.build(method, image_size=64).fit(torch.zeros(1, 1, 64, 64))


# ---------------------------------------------------------------- feature-ae


def test_cells_are_like_themselves():
    f = drawn(2, 3, 16, 16)
    f[:, 0] = 0.3  # a channel without variance
    torch.testing.assert_close(cell_similarity(f, f), torch.ones_like(f), rtol=1e-4, atol=1e-4)
    other = drawn(2, 3, 16, 16, seed=1)
    assert cell_similarity(f, other)[:, 1:].mean() < 0.3
    torch.testing.assert_close(cell_similarity(f, other), cell_similarity(other, f))


@pytest.mark.slow
def test_feature_ae_finds_the_cells_that_break_the_rule(monkeypatch):
    """Two halves that are always alike; in one image a square of cells has them apart."""
    one = F.interpolate(drawn(41, 1, 4, 4), size=8, mode="bilinear")
    b = one.repeat(1, 40, 1, 1) + 0.05 * drawn(41, 40, 8, 8, seed=4)
    b[40, 20:, 0:3, 0:3] *= -1
    options = {"image_size": 64, "steps": 200, "learning_rate": 3e-3}
    model = models.build("feature-ae", taps="b", **options)
    with_features(model, monkeypatch, b=b).fit(numbered(41)[:30])
    cells = model.cells_of(numbered(41)[30:])
    assert cells[10, 0:3, 0:3].mean() > 1.8 * cells[:10, 0:3, 0:3].mean()


def test_feature_ae_of_a_perfect_network_sees_nothing(monkeypatch):
    b = drawn(9, 40, 16, 16)
    model = models.build("feature-ae", taps="b", steps=1)
    with_features(model, monkeypatch, b=b).fit(numbered(9))
    monkeypatch.setattr(model, "network", lambda f: f)
    assert model.anomaly_map(numbered(9)).abs().max() < 1e-3


# ---------------------------------------------------------------- restore


def restoring(**options):
    return models.build("restore", image_size=32, width=4, **options)


def test_restore_corrupts_the_foreground_alone_and_by_severity():
    model = restoring(clean_share=0.0)
    x = -torch.ones(8, 1, 32, 32)
    x[:, :, 8:24, 8:24] = 0.6 * torch.rand(8, 1, 16, 16) - 0.2
    draws = model.draw(x, torch.Generator().manual_seed(0))
    changed = model.corrupt(x, **draws) - x
    outside = torch.ones(32, 32, dtype=torch.bool)
    outside[8:24, 8:24] = False
    assert (changed[:, :, outside] == 0).all()
    assert (changed.abs().amax((1, 2, 3)) > 0).sum() >= 6
    none = model.corrupt(x, **{**draws, "severity": torch.zeros(8)})
    assert torch.equal(none, x)
    double = model.corrupt(x, **{**draws, "severity": 2 * draws["severity"]}) - x
    torch.testing.assert_close(double, 2 * changed, rtol=1e-4, atol=1e-6)


def test_restore_leaves_a_share_clean():
    model = restoring(clean_share=0.4)
    x = torch.rand(400, 1, 32, 32)
    draws = model.draw(x, torch.Generator().manual_seed(0))
    clean = (model.corrupt(x, **draws) == x).flatten(1).all(1).float().mean()
    assert clean.item() == pytest.approx(0.4, abs=0.08)


@pytest.mark.slow
def test_restore_removes_a_disc_that_it_never_saw():
    """Disc-free gradients are normal; a bright disc changes where it lies and hardly elsewhere."""
    line = torch.linspace(-0.8, 0.4, 32)
    tilt = torch.rand(96, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    pixels = ((tilt * line.view(1, 1, 1, -1) + (1 - tilt) * line.view(1, 1, -1, 1)) + 1) / 2
    model = restoring(clean_share=0.2)
    settings = training.TrainingSettings(epochs=25, batch_size=16, precision="float32")
    training.fit(model, pixels[:80], settings=settings, device="cpu")
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    disc = (y - 12) ** 2 + (x - 18) ** 2 < 20
    sick = 2 * pixels[80:] - 1
    sick = torch.where(disc, (sick + 0.5).clamp(max=1), sick)
    with torch.no_grad():
        anomaly_map = model.anomaly_map(sick)
    assert anomaly_map[:, disc].mean() > 3 * anomaly_map[:, ~disc].mean()
