"""Known truths of the Gaussian-mixture variational autoencoder."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from normalis import models, scorers
from normalis.models.gmvae import Posterior


def images(n=3):
    return torch.rand(n, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def small(**options):
    return models.build("gmvae", image_size=32, width=4, **options).eval()


def maps(n, d, *, seed):
    return torch.randn(n, d, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_the_shares_of_clusters_are_those_of_their_densities():
    model = small(latent_dim=2, clusters=3)
    means, log_vars = (
        maps(5, 6, seed=1).unflatten(1, (3, 2)),
        maps(5, 6, seed=2).unflatten(1, (3, 2)),
    )
    z = maps(5, 2, seed=3)
    found = model.shares(z, means, log_vars).exp().numpy()
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    for i, row, column in ((0, 0, 0), (4, 3, 7)):
        at = (..., row, column)
        density = [
            multivariate_normal(m, np.diag(np.exp(v))).pdf(z[i][at].numpy())
            for m, v in zip(means[i][at].numpy(), log_vars[i][at].numpy(), strict=True)
        ]
        np.testing.assert_allclose(found[i][at], np.array(density) / sum(density), rtol=1e-4)


def with_prior(model, means, log_var=0.0):
    """Give the clusters these means, whatever w is."""
    d = model.settings.latent_dim
    with torch.no_grad():
        model.prior[-1].weight.zero_()
        clusters = torch.tensor(means).repeat_interleave(d)
        model.prior[-1].bias.copy_(torch.cat([clusters, torch.full_like(clusters, log_var)]))
    return model


def test_with_one_standard_cluster_it_is_a_variational_autoencoder():
    model = with_prior(small(latent_dim=2, clusters=1), [0.0])
    q = Posterior(*(maps(3, 2, seed=k) for k in range(4)))
    costs = model.costs(q, q.mu_z, q.mu_w)
    closed = 0.5 * (q.mu_z.square() + q.log_var_z.exp() - 1 - q.log_var_z)
    torch.testing.assert_close(costs["conditional"], closed.flatten(1).sum(1))
    closed = 0.5 * (q.mu_w.square() + q.log_var_w.exp() - 1 - q.log_var_w)
    torch.testing.assert_close(costs["prior"], closed.flatten(1).sum(1))
    torch.testing.assert_close(costs["clusters"], torch.full((3,), 0.5 * 64))


def test_a_posterior_that_is_a_cluster_costs_nothing_but_its_choice():
    model = with_prior(small(clusters=2), [-20.0, 20.0])
    q = Posterior(*(torch.full((1, 1, 8, 8), v) for v in (20.0, 0.0, 0.0, 0.0)))
    costs = model.costs(q, q.mu_z, q.mu_w)
    assert costs["conditional"].item() == pytest.approx(0, abs=1e-3)
    assert costs["prior"].item() == 0
    assert costs["clusters"].item() == pytest.approx(64 * math.log(2), rel=1e-4)


def test_the_choice_of_a_cluster_is_free_up_to_a_bound():
    """At log K or above, the term is constant: no choice can cost more."""
    q = Posterior(*(3 * maps(2, 1, seed=k) for k in range(4)))
    free = small(clusters=6, free_nats=math.log(6))
    assert torch.equal(
        free.costs(q, q.mu_z, q.mu_w)["clusters"].round(decimals=3),
        torch.full((2,), 64 * math.log(6)).round(decimals=3),
    )
    paid = with_prior(small(clusters=6, free_nats=0.0), [-5.0, -3.0, -1.0, 1.0, 3.0, 5.0])
    cost = paid.costs(q, q.mu_z, q.mu_w)["clusters"]
    assert (cost > 0).all()
    assert (cost <= 64 * math.log(6)).all()


def test_the_loss_is_the_bound_over_the_pixels():
    model, x = small(), images()
    draws = {name: torch.zeros(3, 1, 8, 8) for name in ("noise_z", "noise_w")}
    with torch.no_grad():
        loss = sum(model.losses(x, **draws).values())
        torch.testing.assert_close(model.negative_elbo(x).mean() / 1024, loss)
        torch.testing.assert_close(scorers.build("elbo").anomaly_score(model, x).mean(), loss)


def test_it_is_read_by_restoration_and_by_slopes():
    model, x = small(), images()
    for scorer in (
        scorers.build("restoration", steps=3).fit(model, x),
        scorers.build("gradient", form="cevae"),
    ):
        shown = scorer.anomaly_map(model, x)
        assert torch.isfinite(shown).all()
        alone = torch.cat([scorer.anomaly_map(model, x[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(alone, shown, rtol=1e-3, atol=1e-5)
