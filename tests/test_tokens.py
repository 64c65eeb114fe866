"""Known truths of codebooks, of the transformer on tokens, and of what they make together."""

import pytest
import torch

from normalis import models
from normalis.errors import SettingsError
from normalis.models.codebook import Codebook
from normalis.models.token_transformer import ORDERS, TokenTransformer, orders_of
from normalis.models.vq_transformer import VQTransformer, _below
from normalis.training import loop
from normalis.training.settings import TrainingSettings


def source(seed=0):
    return torch.Generator().manual_seed(seed)


# --- codes ---


def test_codes_move_to_the_means_of_separated_clusters():
    centres = torch.tensor([[0.0, 0], [0, 8], [8, 0], [8, 8]])
    book, generator = Codebook(4, 2), source()

    def drawn(n):
        which = torch.randint(4, (n,), generator=generator)
        return centres[which] + 0.3 * torch.randn(n, 2, generator=generator)

    book.place(drawn(64), generator)
    for _ in range(300):
        book.learn(drawn(64), generator)
    found = book.codes[torch.cdist(centres, book.codes).argmin(1)]
    torch.testing.assert_close(found, centres, atol=0.1, rtol=0)
    assert book.perplexity == pytest.approx(4, abs=0.1)


def test_the_gradient_passes_a_quantisation_unchanged():
    book, z = Codebook(5, 3), torch.randn(7, 3, generator=source(), requires_grad=True)
    codes, commitment = book(z)
    weight = torch.randn(7, 3, generator=source(1))
    (gradient,) = torch.autograd.grad((codes * weight).sum(), z)
    assert torch.equal(gradient, weight)
    nearest = torch.cdist(z, book.codes).argmin(1)
    torch.testing.assert_close(codes, book.codes[nearest])
    torch.testing.assert_close(commitment, (z - book.codes[nearest]).square().mean())


def test_a_code_that_nothing_is_near_to_is_drawn_anew():
    book, generator = Codebook(3, 2), source()
    z = torch.randn(64, 2, generator=generator)
    book.place(z, generator)
    with torch.no_grad():
        book.codes[0] = book.sums[0] = 1e3
        book.counts[0] = 0.0
    book.learn(z, generator)
    assert book.codes.abs().max() < 10
    assert book.perplexity > 1


# --- orders and likelihoods ---


@pytest.mark.parametrize("side", [2, 5])
def test_orders_are_permutations_and_their_inverses_undo_them(side):
    orders = orders_of(side, ORDERS)
    places = torch.arange(side * side)
    assert torch.equal(orders[0], places)
    assert torch.equal(orders[1], places.flip(0))
    assert len({tuple(o.tolist()) for o in orders}) == ORDERS
    for order in orders:
        assert torch.equal(order.sort().values, places)
        assert torch.equal(places[order][order.argsort()], places)


def small(tokens=3, places=9, **options):
    torch.manual_seed(0)
    return TokenTransformer(tokens, places, **{"width": 16, "depth": 2, "heads": 2, **options})


def test_a_token_is_judged_by_those_before_it_alone():
    model, order = small(), orders_of(3, 2)[1]
    tokens = torch.randint(3, (4, 9), generator=source())
    changed = tokens.clone()
    changed[:, 2] = (changed[:, 2] + 1) % 3  # read seventh
    before, after = order[:6], order[7:]
    first, second = model(tokens, order), model(changed, order)
    torch.testing.assert_close(first[:, before], second[:, before])
    assert not torch.allclose(first[:, after], second[:, after])
    alone = torch.cat([model(tokens[i : i + 1], order) for i in range(4)])
    torch.testing.assert_close(alone, first)
    each = torch.stack([order, orders_of(3, 1)[0], order, order])
    mixed = model(tokens, each)
    torch.testing.assert_close(mixed[0], first[0])
    torch.testing.assert_close(mixed[1], model(tokens, orders_of(3, 1)[0])[1])


def test_probabilities_of_all_sequences_sum_to_one():
    model = small(tokens=2, places=4)
    every = torch.cartesian_prod(*[torch.arange(2)] * 4)
    for order in orders_of(2, 4):
        assert model(every, order).sum(1).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_healing_with_kept_keys_is_reading_again():
    model, order = small(), orders_of(3, 3)[2]
    tokens = torch.randint(3, (5, 9), generator=source())
    wrong = torch.rand(5, 9, generator=source(1)) < 0.4
    slow = tokens.clone()
    for place in order.tolist():
        tried = []
        for token in range(3):
            guess = slow.clone()
            guess[:, place] = token
            tried.append(model(guess, order)[:, place])
        best = torch.stack(tried).argmax(0)
        slow[:, place] = torch.where(wrong[:, place], best, slow[:, place])
    assert torch.equal(model.heal(tokens, wrong, order), slow)
    assert torch.equal(model.heal(tokens, torch.zeros_like(wrong), order), tokens)


def learn(model, draw, steps, rate=3e-3):
    optimiser = torch.optim.Adam(model.parameters(), rate)
    orders = orders_of(round(model.place.num_embeddings**0.5), 2)
    for step in range(steps):
        tokens = draw(64)
        chosen = orders[torch.randint(2, (64,), generator=source(step))]
        loss = -model(tokens, chosen).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        for group in optimiser.param_groups:
            group["lr"] = rate * (1 - step / steps)
    return orders


@pytest.mark.slow
def test_the_likelihood_of_a_markov_chain_reaches_its_entropy_rate():
    """A chain and its reverse have the same entropy, so that both orders reach it."""
    transition = torch.tensor([[0.8, 0.2, 0.0], [0.1, 0.6, 0.3], [0.4, 0.0, 0.6]])
    start = torch.linalg.matrix_power(transition, 200)[0]
    generator, places = source(), 16

    def draw(n):
        states = [torch.multinomial(start.expand(n, -1), 1, generator=generator)[:, 0]]
        for _ in range(places - 1):
            step = torch.multinomial(transition[states[-1]], 1, generator=generator)
            states.append(step[:, 0])
        return torch.stack(states, 1)

    model = small(places=places, width=32)
    orders = learn(model, draw, 500)
    entropy = torch.special.entr
    rate = (start[:, None] * entropy(transition)).sum()
    expected = (entropy(start).sum() + (places - 1) * rate) / places
    held = draw(2000)
    with torch.no_grad():
        for order in orders:
            assert -model(held, order).mean().item() == pytest.approx(expected.item(), abs=0.02)


@pytest.mark.slow
def test_one_wrong_token_of_a_pattern_is_found_and_healed():
    grid = torch.arange(16)
    pattern = torch.stack([(grid + grid // 4 + k) % 3 for k in range(3)])  # three phases

    def draw(n):
        return pattern[torch.arange(n) % 3]

    model = small(places=16, width=32)
    orders = learn(model, draw, 150)
    wrong = draw(6).clone()
    wrong[:, 9] = (wrong[:, 9] + 1) % 3
    with torch.no_grad():
        for order in orders:
            rare = _below(model(draw(300), order)[None], 0.01)[0]
            mask = model(wrong, order) < torch.minimum(rare, rare.min() - 0.05)
            first = torch.zeros_like(mask)
            first[:, 9] = True
            assert mask[:, 9].all()
            assert (mask & ~first).sum() <= mask.sum() / 2, "little else is wrong"
            assert torch.equal(model.heal(wrong, first, order), draw(6))


# --- together ---


TINY = {
    "image_size": 32, "width": 8, "codes": 8, "code_dim": 4, "transformer_width": 16, "depth": 1,
    "heads": 2,
}  # fmt: skip


def build(**options):
    model = models.build("vq-transformer", **{**TINY, **options})
    assert isinstance(model, VQTransformer)
    return model


def images(n, seed=0):
    """Return patches of two greys, of which no image has all alike."""
    coarse = torch.rand(n, 1, 8, 8, generator=source(seed)).round()
    return torch.nn.functional.interpolate(0.1 + 0.8 * coarse, scale_factor=4)


def test_what_is_wrong_is_a_p_value_by_place():
    log_p = torch.randn(2, 199, 5, generator=source())
    below = _below(log_p, 0.01)
    new = torch.randn(2, 5, 400, generator=source(1))
    p = (1 + (log_p[:, :, :, None] <= new[:, None]).sum(1)) / 200
    assert torch.equal(new < below[..., None], p <= 0.01)
    few = _below(log_p[:, :30], 0.01)
    assert torch.isfinite(few).all(), "all places are joined"
    assert (few == few[:, :1]).all()
    assert (_below(log_p[:, :1], 0.01) == -torch.inf).all(), "nothing can be said"


def trained(**options):
    model = build(**options)
    settings = TrainingSettings(epochs=24, batch_size=16, precision="float32", learning_rate=3e-3)
    training = loop.Training(
        [model], images(64), settings=settings, seeds=[0], device="cpu", held=images(24, seed=5)
    )
    training.run()
    return model.eval(), training


def test_both_stages_are_trained_and_normal_tokens_are_known():
    model, training = trained()
    first, last = training.history[0], training.history[-1]
    assert "reconstruction" in first
    assert "reconstruction" not in last
    assert last["token surprise"] < torch.tensor(8.0).log()
    assert model.codebook.perplexity > 2
    assert torch.isfinite(model.rare).all()
    x = 2 * images(40, seed=3) - 1
    with torch.no_grad():
        wrong = model.heal(model.tokens(x), model.log_p(model.tokens(x)))[1]
        assert wrong.float().mean() < 0.1
        assert torch.equal(model.decode(model.encode(x)), model.image(model.tokens(x)))


def test_the_second_stage_leaves_the_first_alone():
    model, x = build(), 2 * images(8) - 1
    before = {k: v.clone() for k, v in model.state_dict().items()}
    draws = model.draw(x, source())
    model.token_losses(x, **draws)["surprise"].backward()
    named = dict(model.named_parameters())
    assert all(p.grad is None for n, p in named.items() if not n.startswith("transformer."))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_held_out_images_decide_what_is_wrong():
    seen, held = trained()[0], trained(held_out=True)[0]
    assert torch.equal(seen.codebook.codes, held.codebook.codes)
    assert not torch.equal(seen.rare, held.rare)


def test_a_map_shows_what_was_healed_and_nothing_else():
    model, _ = trained()
    x = 2 * images(6, seed=4) - 1
    with torch.no_grad():
        model.rare.fill_(-torch.inf)
        assert (model.anomaly_map(x) == 0).all()
        torch.testing.assert_close(model.reconstruct(x), model.decode(model.encode(x)))
        model.rare[0, 5] = 1.0  # every token there is wrong in one order
        shown = model.anomaly_map(x)
    assert (shown[:, 8:16, 8:16] > 0).any()
    shown[:, 4:20, 4:20] = 0
    assert (shown == 0).all()


def test_typical_is_far_from_usual():
    model, _ = trained(score="typical")
    x = 2 * images(5, seed=4) - 1
    with torch.no_grad():
        log_p = model.log_p(model.tokens(x))
        expected = (-log_p - model.usual[:, None]).abs().mean((0, 2))
        torch.testing.assert_close(model.anomaly_score(x), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"orders": 9}, "orders must be at most 8, got 9"),
        ({"transformer_width": 15}, "must be a multiple of heads"),
        ({"alpha": 0.0}, r"alpha must be in \(0, 1\), got 0.0"),
        ({"score": "p"}, "score must be one of likelihood, typical"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(SettingsError, match=message):
        build(**options)
