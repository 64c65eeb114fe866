import logging

import pytest
import torch
from torch import nn

from normalis import models
from normalis.errors import DataError, SettingsError, TrainingError
from normalis.models.adversarial import frozen, gradient_penalty
from normalis.models.base import Autoencoder, ModelSettings, Phase
from normalis.models.inputs import to_model_input
from normalis.training.loop import Training, batches, fit, pick_device, train
from normalis.training.settings import TrainingSettings, settings_for
from normalis.training.stack import groups

SMALL = {"image_size": 16, "latent_dim": 2, "hidden_dim": 16}
FLOAT32 = {"precision": "float32", "batch_size": 8}


def images(n=24, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 1, size, size), dtype=torch.uint8, generator=generator)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_training_lowers_the_loss_and_leaves_evaluation_mode():
    model = models.build("ae", **SMALL)
    history = fit(model, images(), settings=TrainingSettings(epochs=8, **FLOAT32))
    assert history[-1]["reconstruction"] < history[0]["reconstruction"]
    assert not model.training


def test_a_stacked_model_is_the_model_trained_alone():
    settings, x = TrainingSettings(epochs=2, **FLOAT32), images()
    stack = [models.build("ae", seed=s, **{**SMALL, "latent_dim": d}) for s, d in ((0, 2), (5, 4))]
    train(stack, x, settings=settings, seeds=[0, 5])
    alone = models.build("ae", seed=5, **{**SMALL, "latent_dim": 4})
    fit(alone, x, settings=settings, seed=5)
    torch.testing.assert_close(weights(alone), weights(stack[1]), rtol=0, atol=0)


@pytest.mark.parametrize("recipe", ["paper", "fast"])
def test_a_resumed_training_is_the_uninterrupted_one(recipe):
    settings, x = TrainingSettings(epochs=4, recipe=recipe, **FLOAT32), images()

    def new():
        model = models.build("ae", **SMALL)
        return Training([model], x, settings=settings, seeds=[0])

    whole = new()
    whole.run()

    class Stop(Exception):
        pass

    def stop(progress):
        if progress.epoch == 2:
            raise Stop

    first = new()
    with pytest.raises(Stop):
        first.run(stop)
    second = new()
    second.resume({k: v.clone() for k, v in first.state().items()}, first.progress())
    second.run()
    assert torch.equal(weights(whole.members[0].model), weights(second.members[0].model))
    assert whole.members[0].history == second.members[0].history


def test_the_global_random_state_is_left_alone():
    before = torch.random.get_rng_state()
    fit(models.build("ae", **SMALL), images(), settings=TrainingSettings(epochs=1, **FLOAT32))
    assert torch.equal(before, torch.random.get_rng_state())


def test_another_seed_is_another_model():
    a, b = (models.build("ae", seed=s, **SMALL) for s in (0, 1))
    assert not torch.equal(weights(a), weights(b))


@pytest.mark.parametrize(
    ("n", "sizes"), [(65, [65]), (64, [64]), (66, [2, 64]), (129, [64, 65]), (2, [2])]
)
def test_no_batch_has_a_single_image(n, sizes):
    parts = batches(n, 64, torch.Generator().manual_seed(0))
    assert sorted(map(len, parts)) == sizes
    assert min(map(len, parts)) >= 2
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(n))


def test_sixty_five_images_train():
    fit(models.build("ae", **SMALL), images(65), settings=TrainingSettings(epochs=1))


def test_one_image_is_refused():
    with pytest.raises(DataError, match="at least 2 normal images, got 1"):
        fit(models.build("ae", **SMALL), images(1), settings=TrainingSettings(epochs=1))


def test_a_loss_that_is_not_finite_stops_with_a_clear_error():
    x = torch.full((8, 1, 16, 16), float("nan"))
    with pytest.raises(TrainingError, match="losses must be finite, got reconstruction = nan"):
        fit(models.build("ae", **SMALL), x, settings=TrainingSettings(epochs=3, **FLOAT32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 1}, "batch_size must be at least 2, got 1"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"precision": "half"}, "precision must be one of"),
        ({"recipe": "slow"}, "recipe must be one of"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(SettingsError, match=message):
        TrainingSettings(**options)


def test_unknown_devices_are_refused():
    with pytest.raises(SettingsError, match="device"):
        pick_device("abacus")


def test_the_last_learning_rate_of_the_fast_recipe_is_near_zero():
    settings = TrainingSettings(epochs=4, recipe="fast", **FLOAT32)
    training = Training([models.build("ae", **SMALL)], images(), settings=settings, seeds=[0])
    training.run()
    assert training.members[0].optimisers[0].param_groups[0]["lr"] < 1e-4


def test_standardised_inputs_do_not_see_brightness_or_contrast():
    x = images(4).float() / 255
    plain = to_model_input(x, standardize=True)
    changed = to_model_input(0.5 * x + 0.2, standardize=True)
    torch.testing.assert_close(plain, changed, rtol=1e-4, atol=1e-4)
    flat = to_model_input(torch.full((1, 1, 16, 16), 0.5), standardize=True)
    assert torch.equal(flat, torch.zeros_like(flat))


def test_eight_bit_values_span_the_models_range():
    x = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)
    assert to_model_input(x).flatten().tolist() == [-1.0, 1.0]


@pytest.mark.parametrize(
    ("recipe", "n_images", "given", "expected"),
    [
        ("paper", 1000, {}, (250, 1e-3)),
        ("fast", 1000, {}, (83, 4e-3)),
        ("fast", 500, {}, (125, 4e-3)),  # 8 steps an epoch: a thousand steps take 125 epochs
        ("fast", 100, {}, (250, 4e-3)),  # never more than the paper's
        ("fast", 100, {"epochs": 7, "learning_rate": 0.01}, (7, 0.01)),
        ("paper", 100, {"batch_size": 10}, (250, 1e-3)),
        ("fast", 100, {"batch_size": 10}, (100, 4e-3)),
    ],
)
def test_a_recipe_knows_its_epochs_and_its_rate(recipe, n_images, given, expected):
    settings = settings_for(recipe, n_images=n_images, standardize=True, **given)
    assert (settings.epochs, settings.learning_rate) == expected
    assert (settings.recipe, settings.standardize) == (recipe, True)
    assert settings.batch_size == given.get("batch_size", 64)


def test_an_unknown_recipe_is_refused_by_name():
    with pytest.raises(SettingsError, match="recipe must be one of paper, fast, got 'slow'"):
        settings_for("slow", n_images=10)


# ---------------------------------------------------------------- several phases


class Staged(Autoencoder):
    """A critic that steps thrice for half of the training, and an autoencoder for the rest."""

    def __init__(self, settings, **critic):
        super().__init__(settings)
        pixels = settings.image_size**2
        self.encoder, self.decoder = nn.Linear(pixels, 2), nn.Linear(2, pixels)
        self.critic = nn.Sequential(nn.Linear(pixels, 8), nn.Tanh(), nn.Linear(8, 1))
        self.given = {"repeat": 3, "span": (0.0, 0.5), "betas": (0.0, 0.9), **critic}
        self.calls = []

    def encode(self, x):
        return self.encoder(x.flatten(1))

    def decode(self, z):
        size = self.settings.image_size
        return self.decoder(z).unflatten(1, (1, size, size))

    def draw(self, x, generator):
        return {"mix": torch.rand(len(x), generator=generator)}

    def losses(self, x, **draws):
        self.calls.append(("own", self.trained_share, draws["mix"]))
        return {"reconstruction": (self(x) - x).square().mean()}

    def judge(self, x, **draws):
        self.calls.append(("critic", self.trained_share, draws["mix"]))
        fake = self(x).detach()
        gap = self.critic(fake.flatten(1)).mean() - self.critic(x.flatten(1)).mean()
        penalty = gradient_penalty(
            lambda v: self.critic(v.flatten(1)), real=x, fake=fake, mix=draws["mix"]
        )
        return {"gap": gap.float(), "penalty": 10 * penalty}

    def phases(self):
        own = [*self.encoder.parameters(), *self.decoder.parameters()]
        return [
            Phase("critic ", list(self.critic.parameters()), self.judge, **self.given),
            Phase("", own, self.losses, span=(0.5, 1.0), rate=0.1),
        ]


def staged(**critic):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Staged(ModelSettings(image_size=16), **critic)


def trained_in_stages(model, epochs=4, recipe="paper", **given):
    settings = TrainingSettings(epochs=epochs, recipe=recipe, **{**FLOAT32, **given})
    training = Training([model], images(), settings=settings, seeds=[0])
    model.calls.clear()
    return training


def test_phases_step_within_their_spans_and_as_often_as_they_ask():
    training = trained_in_stages(staged())
    training._trial = lambda: lambda: None  # choosing threads calls the losses as well
    training.run()
    model = training.members[0].model
    steps = [name for name, *_ in model.calls]
    assert steps == ["critic"] * (2 * 3 * 3) + ["own"] * (2 * 3)  # epochs x batches x repeats
    shares = [share for _, share, _ in model.calls]
    assert shares[::3][:6] == pytest.approx([i / 12 for i in range(6)])
    assert shares[-6:] == pytest.approx([i / 12 for i in range(6, 12)])
    assert [set(epoch) for epoch in training.history] == [
        {"critic gap", "critic penalty"}, {"critic gap", "critic penalty"},
        {"reconstruction"}, {"reconstruction"},
    ]  # fmt: skip


def test_each_repeated_step_has_randomness_of_its_own():
    training = trained_in_stages(staged(span=(0.0, 1.0)), epochs=1)
    training._trial = lambda: lambda: None
    training.run()
    calls = training.members[0].model.calls[:8]
    mixes = [mix for _, _, mix in calls if len(mix) == 8]
    assert len({tuple(mix.tolist()) for mix in mixes}) == len([c for c in calls if c[0] != "own"])


def test_a_phase_that_ends_within_an_epoch_is_averaged_over_the_images_it_saw():
    """Half of one epoch of three batches is the first two: 0/3 and 1/3 of it are done."""
    model = staged()
    seen = []
    model.losses = lambda x, **draws: {"one": 0 * model(x).mean() + 1.0}
    model.judge = lambda x, **draws: seen.append(x) or {"one": 0 * model.critic(
        x.flatten(1)).mean() + 1.0}  # fmt: skip
    training = trained_in_stages(model, epochs=1)
    training._trial = lambda: lambda: None
    training.run()
    assert len(seen) == 2 * 3
    assert training.history == [{"critic one": pytest.approx(1.0), "one": pytest.approx(1.0)}]


def test_each_phase_has_its_own_adam():
    critic, own = trained_in_stages(staged()).members[0].optimisers
    assert critic.param_groups[0]["betas"] == (0.0, 0.9)
    assert critic.param_groups[0]["lr"] == 1e-3
    assert own.param_groups[0]["betas"] == (0.9, 0.999)
    assert own.param_groups[0]["lr"] == pytest.approx(1e-4)


def test_without_a_first_moment_adam_is_rmsprop_after_its_first_steps():
    torch.manual_seed(0)
    gradients = torch.randn(600, 5).double()
    moved = []
    for kind, options in (
        (torch.optim.Adam, {"betas": (0.0, 0.99)}), (torch.optim.RMSprop, {"alpha": 0.99})
    ):  # fmt: skip
        weight = nn.Parameter(torch.zeros(5).double())
        optimiser = kind([weight], 1e-3, eps=1e-12, **options)
        for gradient in gradients:
            before = weight.detach().clone()
            weight.grad = gradient.clone()
            optimiser.step()
        moved.append(weight.detach() - before)
    torch.testing.assert_close(moved[0], moved[1], rtol=2e-3, atol=0)


def test_the_schedule_of_the_fast_recipe_runs_over_each_span():
    training = trained_in_stages(staged(), epochs=10, recipe="fast")
    member = training.members[0]
    rates = []
    for done in (0.0, 0.05, 0.25, 0.4999, 0.5, 0.55, 0.9999):
        member.set_rate(done)
        rates.append([o.param_groups[0]["lr"] for o in member.optimisers])
    peak = training.settings.learning_rate
    critic, own = zip(*rates, strict=True)
    assert critic[0] == pytest.approx(0.04 * peak)
    assert critic[1] == pytest.approx(peak)
    assert critic[3] == pytest.approx(0, abs=1e-6)
    assert own[4] == pytest.approx(0.1 * 0.04 * peak)
    assert own[5] == pytest.approx(0.1 * peak)
    assert own[6] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("recipe", ["paper", "fast"])
@pytest.mark.parametrize("stopped_after", [1, 2, 3])
def test_a_training_in_stages_resumes_as_if_uninterrupted(recipe, stopped_after):
    whole = trained_in_stages(staged(), recipe=recipe)
    whole.run()

    class Stop(Exception):
        pass

    def stop(progress):
        if progress.epoch == stopped_after:
            raise Stop

    first = trained_in_stages(staged(), recipe=recipe)
    with pytest.raises(Stop):
        first.run(stop)
    second = trained_in_stages(staged(), recipe=recipe)
    second.resume({k: v.clone() for k, v in first.state().items()}, first.progress())
    second.run()
    assert torch.equal(weights(whole.members[0].model), weights(second.members[0].model))
    assert whole.history == second.history


def test_the_trial_of_threads_does_the_work_of_the_phases_that_have_their_turn():
    training = trained_in_stages(staged())
    seen = []
    model = training.members[0].model
    judge, losses = Staged.judge, Staged.losses
    try:
        Staged.judge = lambda self, x, **d: seen.append("critic") or judge(self, x, **d)
        Staged.losses = lambda self, x, **d: seen.append("own") or losses(self, x, **d)
        before = weights(model).clone()
        training._trial()()
        training.epoch = 2
        training._trial()()
    finally:
        Staged.judge, Staged.losses = judge, losses
    assert seen == ["critic"] * 3 + ["own"]
    assert torch.equal(weights(model), before)


def test_what_does_not_step_plainly_is_not_stacked():
    class One(Staged):
        stackable = "any width"

        def phases(self):
            return [Phase("", list(self.parameters()), self.losses, **self.given)]

    def pair(**given):
        plain = {"repeat": 1, "span": (0.0, 1.0), "betas": (0.9, 0.999)}
        return [One(ModelSettings(image_size=16), **{**plain, **given}) for _ in range(2)]

    assert groups(pair()) == [[0, 1]]
    for given in ({"repeat": 2}, {"span": (0.0, 0.5)}, {"betas": (0.5, 0.9)}, {"rate": 2.0}):
        assert groups(pair(**given)) == [[0], [1]]
    assert groups([staged(), staged()]) == [[0], [1]]


def test_a_phase_without_a_step_is_told_of(caplog):
    with caplog.at_level(logging.WARNING, "normalis.training"):
        trained_in_stages(staged(span=(0.0, 0.5)), epochs=1, batch_size=24).run()
    assert "phase '', from 0.5 to 1 of the training, has none of its 1 steps" in caplog.text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"repeat": 0}, "repeat must be at least 1, got 0"),
        ({"span": (0.5, 0.5)}, "span must be 0 <= from < to <= 1"),
        ({"span": (-0.1, 0.5)}, "span must be"),
        ({"span": (0.5, 1.1)}, "span must be"),
        ({"rate": 0.0}, "rate must be above 0, got 0.0"),
    ],
)
def test_a_phase_that_cannot_be_is_refused(given, message):
    with pytest.raises(SettingsError, match=message):
        Phase("", [], lambda x: {}, **given)


# ---------------------------------------------------------------- the penalty of a critic


def test_the_penalty_of_a_linear_critic_is_known():
    w = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    real, fake = torch.rand(2, 5, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    w.requires_grad_()
    penalty = gradient_penalty(lambda v: (v * w).flatten(1).sum(1), real, fake, torch.rand(5))
    torch.testing.assert_close(penalty, (w.norm() - 1).square())
    (slope,) = torch.autograd.grad(penalty, w)  # differentiated twice
    torch.testing.assert_close(slope, (2 * (w.norm() - 1) * w / w.norm()).detach())


def test_the_penalty_is_taken_between_the_two():
    """Of D(v) = |v|²/2 the gradient is v: one minus the norm of the mixture, squared."""
    real, fake, mix = torch.rand(4, 6), torch.rand(4, 6), torch.tensor([0.0, 1.0, 0.25, 0.5])
    found = gradient_penalty(lambda v: v.square().sum(1) / 2, real, fake, mix)
    between = mix[:, None] * real + (1 - mix[:, None]) * fake
    torch.testing.assert_close(found, (between.norm(dim=1) - 1).square().mean())


def test_the_penalty_is_float32_under_autocast_and_finite_for_a_critic_that_is_flat():
    layer = nn.Conv2d(1, 2, 3)
    x = torch.rand(2, 1, 8, 8)
    plain = gradient_penalty(lambda v: layer(v).flatten(1).sum(1), x, 1 - x, torch.rand(2))
    with torch.autocast("cpu", torch.bfloat16):
        cast = gradient_penalty(lambda v: layer(v).flatten(1).sum(1), x, 1 - x, torch.rand(2))
    assert torch.equal(cast, plain)
    nn.init.zeros_(layer.weight)
    flat = gradient_penalty(lambda v: layer(v).flatten(1).sum(1), x, 1 - x, torch.rand(2))
    flat.backward()
    assert flat == 1
    assert torch.isfinite(layer.weight.grad).all()


def test_frozen_networks_pass_gradients_on_and_come_back_as_they_were():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
    model[2].eval()
    model[0].bias.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.rand(4, 3, requires_grad=True)
    with frozen(model):
        y = model(x).sum()
    y.backward()
    assert x.grad is not None
    assert all(p.grad is None for p in model.parameters())
    assert [m.training for m in model] == [True, True, False]
    assert [p.requires_grad for p in model[0].parameters()] == [True, False]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
