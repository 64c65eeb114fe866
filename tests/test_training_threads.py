"""Threads are chosen by measurement and kept in a checkpoint; they and precision can be fixed."""

import time

import pytest
import torch

from normalis import models
from normalis.errors import SettingsError
from normalis.training import loop
from normalis.training.threads import choose_threads, threads, usable_cores


def a_step_of(seconds):
    """Return a step that takes so long by its number of threads, and the numbers tried."""
    tried = []

    def step():
        tried.append(torch.get_num_threads())
        time.sleep(seconds[torch.get_num_threads()])

    return step, tried


@pytest.fixture(autouse=True)
def _nothing_asked(monkeypatch):
    monkeypatch.delenv("NORMALIS_THREADS", raising=False)


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({1: 0.02, 2: 0.02, 4: 0.0}, 1),  # two do not pay; four are not tried then
        ({1: 0.2, 2: 0.02, 4: 0.02}, 2),
        ({1: 0.8, 2: 0.2, 4: 0.02}, 4),
    ],
)
def test_more_threads_are_taken_only_while_they_pay(seconds, chosen):
    step, _ = a_step_of(seconds)
    before = torch.get_num_threads()
    assert choose_threads(step, most=4) == chosen
    assert torch.get_num_threads() == before


def test_one_core_needs_no_measurement():
    step, tried = a_step_of({})
    assert choose_threads(step, most=1) == 1
    assert tried == []


def test_what_pytorch_was_told_is_the_limit():
    step, tried = a_step_of({1: 0.0, 2: 0.0})
    with threads(1):
        assert choose_threads(step) == 1
    assert tried == []
    assert usable_cores() >= 1


def test_the_environment_overrides(monkeypatch):
    step, tried = a_step_of({})
    monkeypatch.setenv("NORMALIS_THREADS", "3")
    assert choose_threads(step, most=8) == 3
    assert tried == []
    monkeypatch.setenv("NORMALIS_THREADS", "many")
    with pytest.raises(SettingsError, match=r"NORMALIS_THREADS must be .* got 'many'"):
        choose_threads(step, most=8)


def test_a_resumed_training_keeps_its_threads():
    pixels = torch.zeros(4, 1, 16, 16)
    settings = loop.TrainingSettings(epochs=2, precision="float32")

    def training():
        model = models.build("ae", image_size=16, latent_dim=2, hidden_dim=8)
        return loop.Training([model], pixels, settings=settings, seeds=[0], device="cpu")

    first = training()
    first.threads = 2
    resumed = training()
    resumed.resume(first.state(), {**first.progress(), "history": [[]]})
    assert resumed.threads == 2
    resumed.run()
    assert resumed.threads == 2


def test_trying_threads_teaches_the_model_nothing(monkeypatch):
    pixels = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    settings = loop.TrainingSettings(epochs=1, precision="float32")
    found = []
    for asked in ("1", "auto"):
        monkeypatch.setenv("NORMALIS_THREADS", asked)
        monkeypatch.setattr(loop, "choose_threads", lambda step: (step(), 1)[1])
        model = models.build("vae", image_size=16, latent_dim=2, hidden_dim=8)
        loop.train([model], pixels, settings=settings, seeds=[0], device="cpu")
        found.append(model.state())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("asked", ["float32", "bfloat16"])
def test_the_environment_says_what_auto_means(monkeypatch, asked):
    monkeypatch.setenv("NORMALIS_PRECISION", asked)
    seen = {}
    with loop.autocast("auto", torch.device("cpu")):
        seen["auto"] = (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    with loop.autocast("float32", torch.device("cpu")):
        seen["given"] = (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    assert seen == {"auto": getattr(torch, asked), "given": torch.float32}


def test_an_unknown_precision_is_refused(monkeypatch):
    monkeypatch.setenv("NORMALIS_PRECISION", "float16")
    with pytest.raises(SettingsError, match="NORMALIS_PRECISION must be one of"):
        loop.autocast("auto", torch.device("cpu"))
