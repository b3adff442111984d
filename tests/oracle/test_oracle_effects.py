"""What the plain trVAE adds: effects as a sum of base, mean effect and departure; their prior; an encoder blind to what changes."""

from __future__ import annotations

import math

import pytest
import torch

from trifold.core import VAE, EffectDecoder, NegativeBinomial, Posterior, StandardNormal
from trifold.core.likelihood.dispersion import GAIN, TYPICAL
from trifold.nets import MLP
from trifold.records import Batch, Progress, Rows
from trifold.terms import Shrinkage

N, G, D, C, K = 6, 5, 3, 2, 4


def batch(n: int = N, genes: int = G) -> Batch:
    code = torch.arange(n) % C
    x = torch.poisson(torch.full((n, genes), 3.0), generator=torch.Generator().manual_seed(0))
    design = torch.nn.functional.one_hot(code, C).float()
    return Batch(Rows.of_dense(x), x.sum(1, keepdim=True), {"condition": design}, {"condition": code})


def model(dispersion: str = "condition") -> VAE:
    decoder = EffectDecoder(MLP(D, (7,)), MLP(D, (6,)), rank=K, covariates=C, roles=["condition"])
    likelihood = NegativeBinomial(decoder.width, G, dispersion=dispersion, conditions=C)
    return VAE(Posterior(MLP(G, (8,)), D), StandardNormal(D), decoder, likelihood).eval()


def test_the_linear_map_of_the_features_is_base_plus_mean_effect_plus_departure():
    torch.manual_seed(0)
    vae, b = model(), batch()
    z = torch.randn(N, D)
    out = vae.likelihood.out
    torch.nn.init.normal_(out.weight)
    scores = out(vae.decode(z, b))
    base, delta = out.weight[:, :7], out.weight[:, 7 : 7 + C]
    u = out.weight[:, 7 + C :].reshape(G, C, K)
    phi = torch.tanh(vae.decoder.path(vae.decoder.effect(z)))
    for i in range(N):
        own = int(b.code["condition"][i])
        by_hand = base @ vae.decoder.network(z)[i] + delta[:, own] + u[:, own] @ phi[i] + out.bias
        torch.testing.assert_close(scores[i], by_hand)


def test_the_prior_is_the_sum_of_its_five_parts_per_training_cell():
    torch.manual_seed(0)
    vae, b = model(), batch()
    weight = vae.likelihood.out.weight
    torch.nn.init.normal_(weight, std=2.0)
    torch.nn.init.normal_(vae.likelihood.theta.shared)
    torch.nn.init.normal_(vae.likelihood.theta.departure)
    p = vae(b, Progress(cells=50))
    delta, u = weight[:, 7 : 7 + C], weight[:, 7 + C :].reshape(G, C, K)
    own = GAIN * vae.likelihood.theta.shared
    parts = {
        "local": u.square().sum(),
        "shared": delta.square().sum(),
        "sparse": delta.abs().sum() + u.norm(dim=2).sum(),
        "typical": (own - TYPICAL).square().sum(),
        "dispersion": (GAIN * vae.likelihood.theta.departure).square().sum(),
    }
    for name, value in parts.items():
        only = {other: float(other == name) for other in parts}
        slack = 0.03 * G * C * 2 / 50 if name == "sparse" else 1e-5 * value.item()
        assert Shrinkage(**only)(p).item() == pytest.approx(value.item() / 50, abs=slack)


def test_an_effect_that_no_cell_pulls_on_is_drawn_to_nothing():
    vae, b = model("gene"), batch()
    torch.nn.init.normal_(vae.likelihood.out.weight)
    term, optimizer = Shrinkage(typical=0, dispersion=0), torch.optim.Adam(vae.likelihood.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        term(vae(b, Progress(cells=10))).backward()
        optimizer.step()
    effects = vae.likelihood.out.weight[:, 7:]
    assert effects.abs().max() < 0.02
    assert vae.likelihood.out.weight[:, :7].abs().max() > 0.5


def test_inverse_dispersions_begin_at_what_is_typical_and_differ_by_condition_only_by_the_departure():
    vae, b = model(), batch()
    assert torch.allclose(vae.likelihood.theta(b), torch.full((N, G), TYPICAL))
    vae.likelihood.theta.departure.data[1] = math.log(2) / GAIN
    ratio = (vae.likelihood.theta(b) - TYPICAL).exp()
    assert torch.allclose(ratio[b.code["condition"] == 1], torch.tensor(2.0))
    assert torch.allclose(ratio[b.code["condition"] == 0], torch.tensor(1.0))
    unknown = b.under(code={"condition": torch.full((N,), -1)})
    assert torch.allclose(vae.likelihood.theta(unknown), torch.full((N, G), TYPICAL))


def test_a_blind_posterior_does_not_see_the_genes_that_a_condition_changes_most():
    n, genes = 400, 20
    generator = torch.Generator().manual_seed(0)
    code = torch.arange(n) % 2
    x = torch.randn(n, genes, generator=generator)
    x[:, 3] += 3 * code
    x[:, 8] -= 2 * code
    b = Batch(Rows.of_dense(x), torch.ones(n, 1), {}, {"condition": code})
    posterior = Posterior(MLP(genes, (8,)), 2, blind=0.1).eval()
    posterior.start([b.head(150), b])
    assert torch.nonzero(posterior.visible == 0).flatten().tolist() == [3, 8]
    other = x.clone()
    other[:, [3, 8]] = 99.0
    blind = Batch(Rows.of_dense(other), torch.ones(n, 1), {}, {"condition": code})
    assert torch.equal(posterior(b).mean, posterior(blind).mean)
    other[:, 4] = 99.0
    assert not torch.equal(posterior(b).mean, posterior(Batch(Rows.of_dense(other), torch.ones(n, 1), {}, {"condition": code})).mean)


def test_with_one_condition_a_blind_posterior_sees_every_gene():
    b = batch()
    posterior = Posterior(MLP(G, (8,)), 2, blind=0.4)
    posterior.start([b.under(code={"condition": torch.zeros(N, dtype=torch.int64)})])
    assert posterior.visible.all()
