"""Batches scored side by side: the same results, in the same order, in one pass each."""

import threading

import numpy as np
import pytest
import torch

from normalis import models, scorers
from normalis.fitted import FittedDetector
from normalis.loading.arrays import ImageSettings, Loaded, from_array
from normalis.scorers.base import Scorer
from normalis.scoring import score, score_pixels
from small_runs import phantoms


def read(model, scorer):
    """Return a fitted detector of one model, that nothing else is known of."""
    return FittedDetector(
        params={"standardize": False},
        models=(model,),
        scorers=(scorer,),
        image_settings=ImageSettings(image_size=32),
        device=torch.device("cpu"),
    )


@pytest.fixture(scope="module")
def model():
    return models.build("ae", image_size=32, latent_dim=2, hidden_dim=8).eval()


def batches(count, size=4):
    for i in range(count):
        yield from_array(phantoms(size, seed=i), ImageSettings(image_size=32))


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_batches_come_in_order_and_score_as_alone(model):
    scorer = scorers.build("native")
    parts = list(score(read(model, scorer), batches(9)))
    assert len(parts) == 9
    for part, batch in zip(parts, batches(9), strict=True):
        scores, maps, _ = score_pixels(read(model, scorer), batch.pixels)
        np.testing.assert_allclose(part.anomaly_score, scores[0], rtol=1e-6)
        np.testing.assert_allclose(part.anomaly_map, maps, rtol=1e-4, atol=1e-7)
    assert torch.get_num_threads() == 3


class Watching(Scorer):
    """Notes in which threads, and with how many of PyTorch's own, it is asked."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def anomaly_map(self, model, x):
        self.seen.append((threading.get_ident(), torch.get_num_threads()))
        return x.square().mean(1)


@pytest.mark.usefixtures("three_threads")
def test_each_batch_is_one_pass_of_one_thread_beside_others(model):
    scorer = Watching()
    parts = list(score(read(model, scorer), batches(12)))
    assert len(scorer.seen) == len(parts) == 12
    assert {threads for _, threads in scorer.seen} == {1}
    assert threading.get_ident() not in {thread for thread, _ in scorer.seen}


def test_few_batches_are_read_ahead(model):
    seen = []

    def noting():
        for batch in batches(200, size=1):
            seen.append(batch)
            yield batch

    scored = score(read(model, scorers.build("native")), noting())
    next(scored)
    assert len(seen) <= 2 * torch.get_num_threads()
    scored.close()


def test_batches_without_images_are_left_out(model):
    nothing = Loaded(pixels=np.empty((0, 1, 32, 32), np.uint8), rows=[], skipped=[], rule=None)
    given = [nothing, *batches(1), nothing]
    assert len(list(score(read(model, scorers.build("native")), given))) == 1


@pytest.mark.parametrize("method", ["ae", "ganomaly"])
@pytest.mark.parametrize("reduction", ["mean", "top:0.1"])
def test_one_pass_reads_what_two_read(method, reduction):
    network = models.build(method, image_size=32, latent_dim=2, hidden_dim=8).eval()
    scorer = scorers.build("native", reduction=reduction)
    x = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    scores, maps = scorer.read(network, x)
    assert torch.equal(scores, scorer.anomaly_score(network, x))
    assert torch.equal(maps, scorer.anomaly_map(network, x))
    alone, nothing = scorer.read(network, x, maps=False)
    assert torch.equal(alone, scores)
    assert nothing is None
