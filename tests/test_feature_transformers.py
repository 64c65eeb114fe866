"""Known truths of UniAD and HVQ-Trans, on features that are drawn here."""

import math

import pytest
import torch

from normalis import models
from normalis.errors import SettingsError
from normalis.models.attention import Positions, neighbour_mask
from normalis.models.codebook import Codebook
from normalis.models.hvq_trans import optimal_transport
from normalis.models.uniad import UniADTransformer, jitter


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def numbered(n, size=64):
    """Return images that are told apart by their first pixel."""
    x = torch.zeros(n, 1, size, size)
    x[:, 0, 0, 0] = torch.arange(n)
    return x


def with_features(model, monkeypatch, b):
    """Let a model of tap b see given features (N, 40, h, w) of `numbered` images."""
    monkeypatch.setattr(model, "maps", lambda x, taps=None: {"b": b[x[:, 0, 0, 0].long()]})
    return model


# ---------------------------------------------------------------- UniAD


@pytest.mark.parametrize(("side", "window"), [(14, 7), (8, 3), (5, 1)])
def test_a_place_may_not_see_the_window_around_it_cut_at_the_border(side, window):
    mask = neighbour_mask(side, window).reshape(side, side, side, side)
    reach = window // 2
    for i in range(side):
        for j in range(side):
            expected = torch.ones(side, side, dtype=torch.bool)
            expected[max(0, i - reach) : i + reach + 1, max(0, j - reach) : j + reach + 1] = False
            assert torch.equal(mask[i, j], expected)
    assert neighbour_mask(side, 0).all()


def test_positions_name_row_and_column():
    positions = Positions(3, 8)
    found = positions().reshape(3, 3, 8)
    assert torch.equal(found[2, 1], torch.cat([positions.rows[2], positions.columns[1]]))


@pytest.mark.parametrize("window", [1, 3, 7])
def test_without_an_encoder_nothing_in_the_window_reaches_the_place(window):
    options = {"encoder_layers": 0, "decoder_layers": 1, "width": 16, "window": window}
    model = models.build("uniad", image_size=128, **options)
    network = UniADTransformer(6, model.settings).eval()
    f = drawn(1, 6, 8, 8).requires_grad_()
    place = (3, 4)
    (gradient,) = torch.autograd.grad(network(f)[0, :, *place].sum(), f)
    moved = gradient[0].abs().sum(0)
    hidden = ~neighbour_mask(8, window).reshape(8, 8, 8, 8)[place]
    assert (moved[hidden] == 0).all()
    assert (moved[~hidden] > 0).all()


def test_with_an_encoder_the_mask_is_passed_by_the_sums():
    """What the authors' text glosses over, and ours says."""
    model = models.build("uniad", image_size=128, encoder_layers=1, decoder_layers=1, width=16)
    f = drawn(1, 6, 8, 8).requires_grad_()
    found = UniADTransformer(6, model.settings).eval()(f)
    (gradient,) = torch.autograd.grad(found[0, :, 3, 3].sum(), f)
    assert gradient[0, :, 3, 3].abs().sum() > 0


def test_jitter_has_the_stated_norm():
    f = drawn(1, 50, 1, 1).expand(4000, -1, -1, -1) * torch.tensor([1.0, 3.0]).repeat(2000).view(
        -1, 1, 1, 1
    )
    noise = jitter(f, 20.0, torch.Generator().manual_seed(0))
    squared = noise.square().sum(1).flatten()
    expected = (20 * f.norm(dim=1)).square().flatten() / 50
    for k in (0, 1):
        assert squared[k::2].mean() == pytest.approx(expected[k].item(), rel=0.02)
    assert torch.equal(noise, jitter(f, 20.0, torch.Generator().manual_seed(0)))


def test_features_that_never_vary_are_rebuilt(monkeypatch):
    b = drawn(1, 40, 1, 1).expand(9, -1, 4, 4)
    options = {"image_size": 64, "steps": 120, "width": 16, "learning_rate": 1e-2}
    model = models.build("uniad", taps="b", **options)
    with_features(model, monkeypatch, b).fit(numbered(9)[:8])
    assert model.cells_of(numbered(9)[8:]).max() < 0.2, "of 6.3, the length of standard features"


@pytest.mark.slow
def test_uniad_finds_the_place_that_breaks_the_rule(monkeypatch):
    """Features follow from the place's row in all images; in the last one, one place is another."""
    rule = drawn(1, 40, 8, 1).expand(41, -1, -1, 8) + 0.1 * drawn(41, 40, 8, 8, seed=3)
    b = rule.clone()
    b[40, :, 5, 2] = rule[40, :, 1, 2]
    options = {"image_size": 64, "stride": 8, "steps": 120, "width": 32, "learning_rate": 3e-3}
    model = models.build("uniad", taps="b", **options)
    with_features(model, monkeypatch, b).fit(numbered(41)[:32])
    cells = model.cells_of(numbered(41)[32:])
    assert divmod(int(cells[8].argmax()), 8) == (5, 2)
    assert cells[8, 5, 2] > 3 * cells[:8].max()


def test_the_same_seed_trains_the_same_transformer_and_leaves_the_global_state(monkeypatch):
    b, states = drawn(8, 40, 8, 8), []
    for seed in (1, 1, 2):
        torch.rand(1)
        model = models.build("uniad", taps="b", image_size=64, stride=8, steps=3, width=16)
        before = torch.get_rng_state()
        states.append(with_features(model, monkeypatch, b).fit(numbered(8), seed=seed).state())
        assert torch.equal(torch.get_rng_state(), before)
    name = "network.leave.weight"
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])


# ---------------------------------------------------------------- HVQ-Trans


def hvq(monkeypatch, b, n, **options):
    small = {"image_size": 64, "stride": 8, "steps": 30, "width": 16, "codes": 16}
    model = models.build("hvq-trans", taps="b", **{**small, **options})
    return with_features(model, monkeypatch, b).fit(numbered(n))


FOUR = 10 * torch.eye(4)


def of_four(k):
    """Return 400 vectors of four separate Gaussians."""
    return FOUR[torch.arange(400) % 4] + 0.5 * drawn(400, 4, seed=k)


def test_codes_converge_to_the_means_of_what_they_stand_for():
    source, book = torch.Generator().manual_seed(0), Codebook(4, 4)
    book.place(of_four(0), source)
    for k in range(300):
        book.learn(of_four(k), source)
    found = book.codes[torch.cdist(FOUR, book.codes).argmin(1)]
    torch.testing.assert_close(found, FOUR, atol=0.06, rtol=0)
    assert book.perplexity == pytest.approx(4, abs=0.05)


def test_a_code_that_stands_for_nothing_is_drawn_anew():
    source, book = torch.Generator().manual_seed(0), Codebook(5, 4)
    book.codes.copy_(torch.cat([FOUR, torch.full((1, 4), 1e3)]))
    book.counts.fill_(80.0)
    book.sums.copy_(80 * book.codes)
    for k in range(600):
        book.learn(of_four(k), source)
        if k == 300:
            assert book.codes.max() > 900, "not before its count has fallen"
    assert book.codes.max() < 15
    assert book.perplexity > 4


def test_the_gradient_passes_a_quantisation_unchanged_and_codes_learn_in_training_alone():
    book, z = Codebook(6, 3), drawn(5, 3).requires_grad_()
    before = book.codes.clone()
    found, commitment = book(z)
    weights = drawn(5, 3, seed=1)
    (gradient,) = torch.autograd.grad((found * weights).sum(), z, retain_graph=True)
    torch.testing.assert_close(gradient, weights)
    distance = torch.cdist(z, book.codes).min(1).values
    torch.testing.assert_close(commitment, distance.square().sum() / 15)
    assert torch.equal(book.codes, before)
    book(z, torch.Generator().manual_seed(0))
    assert not torch.equal(book.codes, before)


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_the_decoder_sees_codes_alone(levels, monkeypatch):
    b = drawn(12, 40, 8, 8)
    model = hvq(monkeypatch, b, 12, levels=levels, steps=4)
    quantised, _, lowest = model.network.quantise(model._standard(b[:3]))
    assert len(quantised) == max(1, levels - 1) == len(model.network.decoder)
    books = model.network.codebooks
    assert len(books) == levels
    for q, book in zip(quantised, books[-len(quantised) :], strict=True):
        far = (q.flatten(0, 1)[:, None] - book.codes).abs().amax(2).amin(1)
        assert far.max() < 1e-5, "each is a code"
    assert lowest.shape == (3, 64, 16 if levels == 1 else 32)


def test_transport_is_nothing_along_the_codes_and_two_against_them():
    z = drawn(7, 5)
    assert optimal_transport(z[:1], 3 * z[:1].expand(4, -1)).item() == pytest.approx(0, abs=1e-6)
    assert optimal_transport(z[:1], -z[:1].expand(4, -1)).item() == pytest.approx(2, abs=1e-6)
    # By hand: two codes at right angles.
    found = optimal_transport(torch.tensor([[2.0, 0.0]]), torch.eye(2)).item()
    assert found == pytest.approx(1 / (1 + math.exp(1.0)), abs=1e-6)


def test_hvq_scales_its_terms_by_normal_images(monkeypatch):
    b = drawn(12, 40, 8, 8)
    model = hvq(monkeypatch, b, 12, steps=5)
    assert model.cells_of(numbered(12)).mean().item() == pytest.approx(2, abs=0.01)
    bare = hvq(monkeypatch, b, 12, steps=5, ot_weight=0.0)
    error, _ = bare.network.terms(bare._standard(b))
    torch.testing.assert_close(bare.cells_of(numbered(12)), error)


@pytest.mark.slow
def test_hvq_finds_what_has_no_code(monkeypatch):
    """Cells are of four kinds; in the last image one is of a fifth."""
    kinds = 3 * drawn(5, 40)
    which = torch.randint(4, (41, 8, 8), generator=torch.Generator().manual_seed(1))
    which[40, 2, 6] = 4
    b = kinds[which].permute(0, 3, 1, 2) + 0.1 * drawn(41, 40, 8, 8, seed=3)
    monkey = hvq(monkeypatch, b, 32, levels=2, steps=150, width=32)
    cells = monkey.cells_of(numbered(41)[32:])
    assert divmod(int(cells[8].argmax()), 8) == (2, 6)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("uniad", {"image_size": 32}, r"window = 3 would hide all 2 x 2 places"),
        ("uniad", {"window": 9}, r"window = 9 would hide all 8 x 8 places"),
        ("uniad", {"image_size": 48}, r"window = 3 would hide all 3 x 3 places"),
        ("uniad", {"window": 4}, "window must be odd, or 0 for none, got 4"),
        ("uniad", {"width": 30}, "width must be a multiple of 2 and of heads = 4, got 30"),
        ("uniad", {"decoder_layers": 0}, "decoder_layers must be at least 1, got 0"),
        ("uniad", {"jitter": -1.0}, "jitter must be at least 0"),
        ("hvq-trans", {"levels": 0}, "levels must be at least 1, got 0"),
        ("hvq-trans", {"codes": 1}, "codes must be at least 2, got 1"),
        ("hvq-trans", {"width": 6}, "width must be a multiple of 2 and of heads = 4, got 6"),
        ("hvq-trans", {"ot_weight": -1.0}, "ot_weight must be at least 0"),
    ],
)
def test_settings_are_checked(method, options, message):
    with pytest.raises(SettingsError, match=message):
        models.build(method, **options)
