import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from normalis import models
from normalis.errors import TrainingError
from normalis.training.loop import Training
from normalis.training.settings import TrainingSettings
from normalis.training.stack import groups

SMALL = {"image_size": 16, "hidden_dim": 16}
FLOAT32 = {"precision": "float32", "batch_size": 8}
#: 29 images are four batches, the last of five; ten steps are two and a half epochs.
N = 29


def images(n=N):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 1, 16, 16), dtype=torch.uint8, generator=generator)


def members(method, latents, seeds, **options):
    pairs = [(d, s) for d in latents for s in seeds]
    built = [models.build(method, seed=s, latent_dim=d, **SMALL, **options) for d, s in pairs]
    return built, [s for _, s in pairs]


def train(stack, seeds, *, stacked, n=N, layout=torch.channels_last, **settings):
    training = Training(
        stack,
        images(n),
        settings=TrainingSettings(**({"epochs": 3} | FLOAT32 | settings)),
        seeds=seeds,
        device="cpu",
        stacked=stacked,
    )
    for model in stack:
        model.to(memory_format=layout)
    training.run()
    return training


def losses(training):
    return torch.tensor([[list(e.values()) for e in m.history] for m in training.members])


def arrays(model):
    return {k: v.detach().float() for k, v in model.state_dict().items()}


@pytest.mark.parametrize(
    ("method", "latents", "recipe"),
    [
        ("ae", (1, 4, 16), "paper"),
        ("ae", (1, 4), "fast"),
        ("ae-spatial", (1, 3), "paper"),
        ("ae-u", (2, 5), "paper"),
        ("vae", (3,), "paper"),
    ],
)
def test_stacked_models_are_the_models_trained_alone(method, latents, recipe):
    """Ten steps, against single models in the memory layout that a stack computes in.

    Another layout rounds differently, and Adam's first steps, near the sign of the gradient, turn
    that into 5e-4 of the loss after ten steps with or without a stack. So does, in the last steps,
    another processor.
    """
    usual = models.model_class(method).default_options
    together, seeds = members(method, latents, (0, 7), **usual)
    alone, _ = members(method, latents, (0, 7), **usual)
    assert len(groups(together)) == 1
    given = {"recipe": recipe, "batch_size": 32, "epochs": 5, "n": 64}
    stacked = train(together, seeds, stacked=True, **given)
    single = train(alone, seeds, stacked=False, layout=torch.contiguous_format, **given)
    one, other = losses(stacked), losses(single)  # by member, epoch of two steps, and term
    torch.testing.assert_close(one[:, :2], other[:, :2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-4)
    for a, b in zip(together, alone, strict=True):
        assert not a.training
        assert a.state().keys() == b.state().keys()
        x = images(8).float() / 127.5 - 1
        with torch.no_grad():
            torch.testing.assert_close(a.anomaly_score(x), b.anomaly_score(x), rtol=1e-2, atol=1e-3)


def test_a_stack_in_bfloat16_is_near_the_one_in_float32():
    """Batch normalisation gets bfloat16 there, with statistics in float32."""
    usual = models.model_class("ae-u").default_options

    def of(precision):
        built, seeds = members("ae-u", (2, 5), (0,), **usual)
        return losses(train(built, seeds, stacked=True, precision=precision, epochs=2))

    torch.testing.assert_close(of("bfloat16"), of("float32"), rtol=3e-2, atol=1e-2)


def norms_of_gradients(training):
    """Return the norm of each step's gradient, of each model, as the optimisers get it."""
    norms = []

    def look(optimiser, *_):
        gradients = [p.grad for group in optimiser.param_groups for p in group["params"]]
        stacked = gradients[0].ndim == 5  # of the first convolution
        of_models = zip(*gradients, strict=True) if stacked else [gradients]
        norms.extend(torch.stack([g.norm() for g in part]).norm() for part in of_models)

    handle = register_optimizer_step_pre_hook(look)
    try:
        training.run()
    finally:
        handle.remove()
    return torch.stack(norms)


@pytest.mark.parametrize("stacked", [True, False])
def test_gradients_are_clipped_model_by_model(stacked):
    def norms(clip):
        built, seeds = members("ae-u", (2, 5), (0,), clip=clip)
        with torch.no_grad():
            for parameter in built[1].encoder.parameters():
                parameter.mul_(0)  # a model whose gradient is smaller
        one_step = TrainingSettings(epochs=1, **FLOAT32 | {"batch_size": N})
        given = {"settings": one_step, "seeds": seeds, "device": "cpu", "stacked": stacked}
        return norms_of_gradients(Training(built, images(), **given))

    free = norms(0.0)
    between = free.mean().item()
    assert free[1] < between < free[0]
    torch.testing.assert_close(norms(between), torch.stack([free.mean(), free[1]]))


def test_a_stack_of_latents_keeps_its_padding_at_zero():
    built, seeds = members("ae", (1, 4), (0,))
    training = Training(
        built,
        images(),
        settings=TrainingSettings(epochs=2, **FLOAT32),
        seeds=seeds,
        device="cpu",
        stacked=True,
    )
    seen = []

    def look(progress):
        ((stack, _),) = training._stacks
        seen.append(stack.parameters["encoder.latent.weight"][0, 1:].abs().max().item())
        seen.append(stack.parameters["decoder.hidden.0.weight"][0, :, 1:].abs().max().item())

    training.run(look)
    assert seen == [0.0] * 4


def test_a_resumed_stack_is_the_uninterrupted_one():
    class Stop(Exception):
        pass

    def stop(progress):
        if progress.epoch == 1:
            kept.append(({k: v.clone() for k, v in first.state().items()}, first.progress()))
            raise Stop

    kept = []
    whole = train(*members("ae", (1, 4), (0,)), stacked=True)

    def new():
        built, seeds = members("ae", (1, 4), (0,))
        settings = TrainingSettings(epochs=3, **FLOAT32)
        return Training(built, images(), settings=settings, seeds=seeds, device="cpu", stacked=True)

    first, second = new(), new()
    with pytest.raises(Stop):
        first.run(stop)
    second.resume(*kept[0])
    second.run()
    for a, b in zip(whole.members, second.members, strict=True):
        assert a.history == b.history
        torch.testing.assert_close(arrays(a.model), arrays(b.model), rtol=0, atol=0)


def test_only_what_was_compared_shares_a_stack():
    built = [
        models.build("ae", latent_dim=2, **SMALL),
        models.build("memae", latent_dim=2, **SMALL),
        models.build("ae", latent_dim=4, **SMALL),
        models.build("memae", latent_dim=2, **SMALL),
        models.build("vae", latent_dim=2, **SMALL),
        models.build("vae", latent_dim=4, **SMALL),
        models.build("ae", latent_dim=2, loss="l1", **SMALL),
        models.build("ae-u", latent_dim=2, members=2, **SMALL),
        models.build("ae-u", latent_dim=4, members=2, **SMALL),
    ]
    assert groups(built) == [[0, 2], [1], [3], [4], [5], [6], [7], [8]]


def test_members_outside_a_stack_are_trained_too():
    built, seeds = members("ae", (1, 2), (0,))
    other = models.build("memae", latent_dim=2, **SMALL)
    training = train([*built, other], [*seeds, 0], stacked=True, epochs=1)
    assert [len(m.history) for m in training.members] == [1, 1, 1]


def test_a_cpu_does_not_stack_unless_asked():
    built, seeds = members("ae", (1, 2), (0,))
    settings = TrainingSettings(epochs=1, **FLOAT32)
    assert not Training(built, images(), settings=settings, seeds=seeds, device="cpu").stacked


def test_a_loss_that_is_not_finite_stops_the_stack():
    built, seeds = members("ae", (1, 2), (0,))
    settings = TrainingSettings(epochs=2, **FLOAT32)
    x = torch.full((8, 1, 16, 16), float("nan"))
    training = Training(built, x, settings=settings, seeds=seeds, device="cpu", stacked=True)
    with pytest.raises(TrainingError, match="losses must be finite, got reconstruction = nan"):
        training.run()
