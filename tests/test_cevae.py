"""Known truths of the context-encoding variational autoencoder."""

import pytest
import torch

from normalis import models, scorers
from normalis.models.cevae import CeVAE, CeVAESettings


def images(n=4):
    return torch.rand(n, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def small(**options):
    return models.build("cevae", hidden_dim=8, latent_dim=3, **options)


def test_each_image_has_squares_of_its_own():
    model = CeVAE(CeVAESettings(hidden_dim=8, latent_dim=3))
    draws = model.draw(images(400), torch.Generator().manual_seed(0))
    assert set(draws["count"].tolist()) == {1, 2, 3}
    holes = model.holes(draws["count"], draws["area"], draws["place"])[:, 0]
    assert len({tuple(hole.flatten().tolist()) for hole in holes}) == 400
    share = holes.float().mean((1, 2))
    assert share.max() < 0.11
    single = draws["count"] == 1
    assert share[single].min() > 0.02
    expected = 0.024 + draws["area"][single] * (0.1 - 0.024)
    torch.testing.assert_close(share[single], expected, rtol=0.15, atol=0)
    assert holes.any(0)[6:-6, 6:-6].all(), "squares may lie anywhere"


def test_the_hole_of_an_image_does_not_depend_on_the_others():
    model, x = small(), images(6)
    draws = model.draw(x, torch.Generator().manual_seed(1))
    given = draws["count"], draws["area"], draws["place"]
    alone = torch.cat([model.holes(*(d[i : i + 1] for d in given)) for i in range(6)])
    assert torch.equal(alone, model.holes(*given))


def test_squares_lie_where_they_are_told():
    model = small(least_erased=0.0625, most_erased=0.0625)  # 16 x 16 of 64 x 64, alone
    place = torch.zeros(2, 3, 2)
    place[1] = 0.999
    holes = model.holes(torch.tensor([1, 1]), torch.zeros(2), place)[:, 0]
    assert holes[0, :16, :16].all()
    assert holes[0].sum() == 256
    assert holes[1, -16:, -16:].all()
    assert holes[1].sum() == 256


def test_without_holes_the_loss_is_twice_the_error_and_the_kl():
    model, x = small(least_erased=0.0, most_erased=0.0).eval(), images()
    draws = model.draw(x, torch.Generator().manual_seed(0))
    draws["noise"] = torch.zeros_like(draws["noise"])
    with torch.no_grad():
        losses = model.losses(x, **draws)
        error = (model(x) - x).square().mean()
        torch.testing.assert_close(losses["context"], error)
        expected = 2 * error + 0.005 * model.kl(x).mean()
        torch.testing.assert_close(sum(losses.values()), expected)


def test_the_target_is_the_image_without_its_holes():
    """A model that keeps holes must not be rewarded: the error counts the hole."""
    model, x = small(fill=-1.0), torch.ones(2, 1, 64, 64)
    model.decode = lambda z: torch.where(holes, -1.0, x)
    draws = model.draw(x, torch.Generator().manual_seed(0))
    holes = model.holes(draws["count"], draws["area"], draws["place"])
    loss = model.losses(x, **draws)["context"]
    assert loss.item() == pytest.approx(4 * holes.float().mean().item())


def test_it_is_read_as_published():
    model, x = small().eval(), images()
    for name, options in (
        ("elbo", {}),
        ("gradient", {"form": "cevae", "smoothing": 0.047}),
        ("gradient", {"form": "combi", "smoothing": 0.047}),
    ):
        score, shown = scorers.build(name, **options).read(model, x)
        assert score.shape == (4,)
        assert shown.shape == (4, 64, 64)
        assert torch.isfinite(shown).all()
