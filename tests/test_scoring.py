"""Batches scored side by side: the same results, in the same order, in one pass each."""

import threading

import numpy as np
import pytest
import torch

from normalis import models, scorers
from normalis.loading.arrays import ImageSettings, Loaded, from_array
from normalis.scorers.base import Scorer
from normalis.scoring import score, score_pixels
from small_runs import phantoms

CPU = torch.device("cpu")


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
    parts = list(score([(model, scorer)], batches(9), device=CPU))
    assert len(parts) == 9
    for part, batch in zip(parts, batches(9), strict=True):
        scores, maps, _ = score_pixels(model, scorer, batch.pixels, device=CPU)
        np.testing.assert_allclose(part.anomaly_score, scores, rtol=1e-6)
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
    parts = list(score([(model, scorer)], batches(12), device=CPU))
    assert len(scorer.seen) == len(parts) == 12
    assert {threads for _, threads in scorer.seen} == {1}
    assert threading.get_ident() not in {thread for thread, _ in scorer.seen}


def test_few_batches_are_read_ahead(model):
    read = []

    def noting():
        for batch in batches(200, size=1):
            read.append(batch)
            yield batch

    scored = score([(model, scorers.build("native"))], noting(), device=CPU)
    next(scored)
    assert len(read) <= 2 * torch.get_num_threads()
    scored.close()


def test_batches_without_images_are_left_out(model):
    nothing = Loaded(pixels=np.empty((0, 1, 32, 32), np.uint8), rows=[], skipped=[], rule=None)
    given = [nothing, *batches(1), nothing]
    assert len(list(score([(model, scorers.build("native"))], given, device=CPU))) == 1


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
