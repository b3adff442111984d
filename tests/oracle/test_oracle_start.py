"""Where training begins: probabilistic PCA in closed form (Tipping and Bishop 1999), and data that PCA finds hard."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from trifold.core import VAE, Decoder, Gaussian, NegativeBinomial, Posterior, StandardNormal
from trifold.core.start import start
from trifold.nets import MLP
from trifold.records import Batch, Rows

GENES, LATENT, WIDTH = 40, 3, 8


def factors(n: int = 900, genes: int = GENES, *, seed: int = 0) -> Tensor:
    """A linear factor model: three strong axes, noise of variance 0.25."""
    rng = torch.Generator().manual_seed(seed)
    frame, _ = torch.linalg.qr(torch.randn(genes, LATENT, generator=rng))
    z = torch.randn(n, LATENT, generator=rng) * torch.tensor([5.0, 3.0, 1.5])
    return z @ frame.T + torch.randn(genes, generator=rng) + 0.5 * torch.randn(n, genes, generator=rng)


def batch_of(x: Tensor, size: Tensor | None = None) -> Batch:
    code = torch.arange(len(x)) % 2
    return Batch(Rows.of_dense(x), torch.ones(len(x), 1) if size is None else size, code={"condition": code})


def vae_of(genes: int = GENES, *, latent: int = LATENT, linear: bool = True, skip: bool = True, likelihood=None, **posterior) -> VAE:
    torch.manual_seed(0)
    decoder = Decoder(MLP(latent, (WIDTH,), norm="none"), skip=skip)
    noise = Gaussian(decoder.width, genes, variance="shared") if likelihood is None else likelihood(decoder.width, genes)
    return VAE(Posterior(MLP(genes, (WIDTH,)), latent, linear=linear, **posterior), StandardNormal(latent), decoder, noise)


def started(vae: VAE, x: Tensor, batches: Iterable[Batch] | None = None) -> VAE:
    parts = [batch_of(part) for part in x.split(128)] if batches is None else list(batches)
    start(vae, x.mean(0), x.var(0), lambda: parts)
    return vae.eval()


def principal(x: Tensor, d: int = LATENT) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centre, axes [g, d], their variances and that of the noise: maximum likelihood of probabilistic PCA."""
    x = x.double()
    values, axes = torch.linalg.eigh(torch.cov(x.T, correction=0))
    values, axes = values.flip(0), axes.flip(1)
    return x.mean(0), axes[:, :d], values[:d], values[d:].mean()


def test_the_linear_path_is_the_posterior_mean_of_probabilistic_pca_and_the_whole_is_near_it():
    x = factors()
    vae = started(vae_of(), x)
    centre, axes, values, noise = principal(x)
    loading = axes * (values - noise).sqrt()
    inner = loading.T @ loading + noise * torch.eye(LATENT)
    exact = torch.linalg.solve(inner, loading.T @ (x.double() - centre).T).T
    with torch.no_grad():
        path, qz = vae.posterior.straight(x).double(), vae.encode(batch_of(x))
    sign = (path * exact).sum(0).sign()
    torch.testing.assert_close(path, exact * sign, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(qz.mean.double(), exact * sign, rtol=0, atol=0.03)
    variance = (noise * torch.linalg.inv(inner)).diagonal()
    torch.testing.assert_close(qz.variance.double(), variance.expand(len(x), -1), rtol=0.05, atol=0)
    torch.testing.assert_close(torch.exp(vae.posterior.head.bias[LATENT:]).double(), variance, rtol=1e-4, atol=0)


def test_the_reconstruction_is_that_of_pca_with_its_axes_shrunk_by_signal_over_signal_and_noise():
    x = factors()
    vae = started(vae_of(), x)
    centre, axes, values, noise = principal(x)
    expected = centre + (x.double() - centre) @ axes * ((values - noise) / values) @ axes.T
    batch = batch_of(x)
    with torch.no_grad():
        near = vae.likelihood.mean(vae.decode(vae.encode(batch).mean, batch), batch).double()
        vae.likelihood.out.weight[:, :WIDTH] = 0
        vae.posterior.head.weight.zero_()
        linear = vae.likelihood.mean(vae.decode(vae.encode(batch).mean, batch), batch).double()
    torch.testing.assert_close(linear, expected, rtol=1e-4, atol=1e-3)
    assert (near - expected).square().mean() < 0.02 * noise


def test_the_start_explains_what_principal_components_explain():
    x = factors()
    vae, batch = started(vae_of(), x), batch_of(x)
    with torch.no_grad():
        error = (x - vae.likelihood.mean(vae.decode(vae.encode(batch).mean, batch), batch)).square().sum(1).mean()
    _, _, _, noise = principal(x)
    assert error < 1.05 * (GENES - LATENT) * noise + LATENT * noise


def test_the_latents_of_the_training_cells_are_centred_and_of_the_variance_of_the_prior():
    x = factors()
    mean = started(vae_of(), x).posterior.straight(x).double()
    _, _, values, noise = principal(x)
    torch.testing.assert_close(mean.mean(0), torch.zeros(LATENT).double(), rtol=0, atol=1e-4)
    aggregate = mean.var(0, correction=0) + noise / values  # of posterior means plus of the posterior
    torch.testing.assert_close(aggregate, torch.ones(LATENT).double(), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("n", "genes", "latent"), [(2, GENES, 5), (4, GENES, 5), (1, GENES, 3), (30, 4, 6), (30, 4, 4), (30, 1, 3), (60, GENES, 20)]
)
def test_fewer_cells_or_genes_than_latents_give_a_finite_start_and_leave_the_rest_to_the_prior(n, genes, latent):
    x = factors(n, max(genes, LATENT))[:, :genes]
    vae = vae_of(genes, latent=latent)
    start(vae, x.mean(0), torch.ones(genes), lambda: [batch_of(x)])
    assert all(torch.isfinite(p).all() for p in vae.parameters())
    qz = vae.eval().encode(batch_of(x))
    assert torch.isfinite(qz.mean).all()
    rank = min(n, genes, latent)
    assert (vae.likelihood.out.weight[:, WIDTH + rank :] == 0).all()
    torch.testing.assert_close(qz.mean[:, rank:], torch.zeros(n, latent - rank), rtol=0, atol=0.05)
    torch.testing.assert_close(qz.variance[:, rank:], torch.ones(n, latent - rank), rtol=0, atol=0.05)


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_cells_that_are_all_equal_give_a_finite_start(value):
    x = torch.full((30, GENES), value)
    vae = started(vae_of(), x)
    assert all(torch.isfinite(p).all() for p in vae.parameters())
    assert torch.isfinite(vae.encode(batch_of(x)).mean).all()


def test_an_axis_whose_entries_sum_to_zero_is_kept():
    x = torch.randn(200, 1) @ torch.tensor([[1.0, -1.0, 1.0, -1.0]]) * 3 + 0.01 * torch.randn(200, 4)
    x = torch.cat([x, x[:, [1, 0, 3, 2]]])  # symmetric under exchange, so that the sum is zero up to rounding
    vae = started(vae_of(4, latent=1), x)
    assert vae.likelihood.out.weight[:, WIDTH:].norm().item() == pytest.approx(6, rel=0.1)


def test_start_leaves_no_gradient_no_frozen_weight_and_the_global_generator_as_found():
    x, vae = factors(), vae_of()
    state, flags = torch.get_rng_state(), [p.requires_grad for p in vae.parameters()]
    started(vae, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert flags == [p.requires_grad for p in vae.parameters()]
    assert all(p.grad is None and p.grad_fn is None and p.is_leaf for p in vae.parameters())
    assert torch.is_grad_enabled()


def test_the_start_depends_on_the_cells_alone_not_on_the_generator_or_how_they_are_cut():
    x = factors()
    found = []
    for seed, cut in ((1, 128), (2, 128), (1, 900)):
        vae = vae_of()
        torch.manual_seed(seed)
        found.append(started(vae, x, [batch_of(part) for part in x.split(cut)]).state_dict())
    assert all(torch.equal(v, found[1][k]) for k, v in found[0].items())
    assert all(torch.allclose(v, found[2][k], rtol=1e-4, atol=1e-5) for k, v in found[0].items())


def test_no_more_batches_are_read_than_the_first_four_thousand_cells_need():
    x, read = factors(1000), []

    def batches() -> Iterable[Batch]:
        for i in range(30):
            read.append(i)
            yield batch_of(x)

    start(vae_of(), x.mean(0), x.var(0), batches)
    assert len(read) <= 5


@pytest.mark.parametrize(("linear", "skip"), [(False, True), (True, False), (False, False)])
def test_without_linear_paths_on_both_sides_only_the_likelihoods_biases_are_set(linear, skip):
    x, vae = factors(), vae_of(linear=linear, skip=skip)
    before = {k: v.clone() for k, v in vae.state_dict().items()}
    after = started(vae, x).state_dict()
    assert {k for k, v in after.items() if not torch.equal(v, before[k])} == {"likelihood.out.bias", "likelihood.log_var"}


def test_counts_begin_at_the_principal_components_of_their_log_normalised_values():
    rng = torch.Generator().manual_seed(0)
    program = torch.randn(2, 60, generator=rng)
    rate = torch.softmax(torch.randn(500, 2, generator=rng) @ program * 0.5 + torch.randn(60, generator=rng), 1) * 3000
    x = torch.poisson(rate, generator=rng)
    size = x.sum(1, keepdim=True)
    vae = vae_of(60, latent=2, likelihood=NegativeBinomial, transform="lognorm")
    start(vae, x.mean(0), x.var(0), lambda: [batch_of(x, size)])
    seen = torch.log1p(x / size * 1e4)
    _, axes, values, noise = principal(seen, 2)
    loading = vae.likelihood.out.weight[:, WIDTH:].double()
    torch.testing.assert_close((loading.T @ axes).abs(), torch.diag((values - noise).sqrt()), rtol=1e-3, atol=1e-3)
    vae.eval()
    with torch.no_grad():
        batch = batch_of(x, size)
        error = [
            (torch.log1p(vae.likelihood.mean(h, batch)) - torch.log1p(rate)).square().mean()
            for h in (vae.decode(vae.encode(batch).mean, batch), vae.decode(torch.zeros(500, 2), batch))
        ]
    assert error[0] < 0.15 * error[1]


def test_a_blind_encoder_starts_from_the_genes_that_it_sees():
    x = factors()
    x[:, 5] += 20 * (torch.arange(len(x)) % 2)
    vae = started(vae_of(blind=1 / GENES), x)
    assert vae.posterior.visible[5] == 0
    assert vae.posterior.straight.weight[5].abs().max() < 1e-12
    rest = x.clone()
    rest[:, 5] = 0
    _, _, values, noise = principal(rest)
    path = vae.posterior.straight(vae.posterior.seen(batch_of(x)).to_dense()).double()
    torch.testing.assert_close(path.mean(0), torch.zeros(LATENT).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(path.square().mean(0), (values - noise) / values, rtol=1e-3, atol=0)
