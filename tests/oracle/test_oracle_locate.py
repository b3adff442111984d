"""Where a cell lies: the mode of p(z | x), against closed forms and for every likelihood."""

from __future__ import annotations

import pytest
import torch

from trifold.core import VAE, Bernoulli, Decoder, Gaussian, NegativeBinomial, Poisson, Posterior, StandardNormal, ZeroInflated, locate
from trifold.errors import SpecError
from trifold.nets import MLP
from trifold.records import Batch, Rows

GENES, LATENT = 30, 3
KINDS = {
    "gaussian": lambda h: Gaussian(h, GENES, variance="shared", value=0.3),
    "gaussian per cell": lambda h: Gaussian(h, GENES, variance="cell", value=0.5),
    "gaussian per gene": lambda h: Gaussian(h, GENES, variance="gene", value=0.5),
    "negative binomial": lambda h: NegativeBinomial(h, GENES),
    "zero-inflated": lambda h: ZeroInflated(h, GENES),
    "poisson": lambda h: Poisson(h, GENES),
    "bernoulli": lambda h: Bernoulli(h, GENES),
}


def vae_of(kind: str, refine: int, hidden: tuple[int, ...] = (16,)) -> VAE:
    torch.manual_seed(4)
    decoder = Decoder(MLP(LATENT, hidden, norm="none"), skip=True)
    likelihood = KINDS[kind](decoder.width)
    torch.nn.init.normal_(likelihood.out.weight, std=0.7)
    return VAE(Posterior(MLP(GENES, (16,)), LATENT), StandardNormal(LATENT), decoder, likelihood, refine=refine).eval()


def batch_of(vae: VAE, n: int = 20) -> Batch:
    """Cells that the model itself draws, so that there is a mode to find."""
    generator = torch.Generator().manual_seed(1)
    size = torch.full((n, 1), 300.0) if vae.likelihood.kind == "counts" else torch.ones(n, 1)
    empty = Batch(Rows.of_dense(torch.zeros(n, GENES)), size)
    with torch.no_grad():
        h = vae.decode(torch.randn(n, LATENT, generator=generator), empty)
        return Batch(Rows.of_dense(vae.likelihood.sample(h, empty, generator=generator)), size)


def joint(vae: VAE, z: torch.Tensor, batch: Batch) -> torch.Tensor:
    return vae.likelihood.log_prob(vae.decode(z, batch), batch) + vae.prior.log_prob(z, batch)


def test_a_linear_gaussian_model_finds_the_exact_posterior_mean():
    vae = vae_of("gaussian", refine=12)
    with torch.no_grad():
        vae.likelihood.out.weight[:, : vae.decoder.network.width] = 0
    batch = batch_of(vae)
    loadings, var = vae.likelihood.out.weight[:, -LATENT:].detach().double(), 0.3
    x = batch.rows.to_dense().double() - vae.likelihood.out.bias.detach().double()
    exact = torch.linalg.solve(loadings.T @ loadings / var + torch.eye(LATENT).double(), (x @ loadings / var).T).T
    assert torch.allclose(locate(vae, batch).double(), exact, atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_the_joint_density_vanishes_where_a_cell_is_located(kind):
    vae = vae_of(kind, refine=60)
    batch = batch_of(vae)
    start = vae.posterior(batch).mean.detach()
    norms = []
    for z in (start, locate(vae, batch)):
        z = z.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(joint(vae, z, batch).sum(), [z])
        norms.append(gradient.norm(dim=1).median())
    assert norms[1] < 0.02 * norms[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("refine", [1, 5])
def test_no_cell_gets_less_likely_by_being_refined(kind, refine):
    vae = vae_of(kind, refine=refine)
    batch = batch_of(vae)
    with torch.no_grad():
        before, after = joint(vae, vae.posterior(batch).mean, batch), joint(vae, locate(vae, batch), batch)
    assert (after >= before - 1e-4).all()
    assert (after > before).any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_is_located_alike_alone_and_among_others(kind):
    vae = vae_of(kind, refine=60)
    batch = batch_of(vae)
    together = locate(vae, batch)
    assert torch.allclose(locate(vae, batch.head(1))[0], together[0], atol=1e-2)


def test_without_refinement_a_cell_lies_where_the_encoder_says():
    vae = vae_of("poisson", refine=0)
    batch = batch_of(vae)
    assert torch.equal(locate(vae, batch), vae.posterior(batch).mean)


def test_a_negative_number_of_steps_is_refused():
    with pytest.raises(SpecError, match="refine >= 0"):
        vae_of("gaussian", refine=-1)
