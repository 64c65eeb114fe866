import pytest
import torch

from normalis import models
from normalis.errors import DataError, SettingsError, TrainingError
from normalis.models.inputs import to_model_input
from normalis.training.loop import Training, batches, fit, pick_device, train
from normalis.training.settings import TrainingSettings, settings_for

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
