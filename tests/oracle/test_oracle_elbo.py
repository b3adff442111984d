"""KL, the evidence lower bound of a linear-Gaussian model, priors."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from trifold.core import VAE, ConditionalGaussian, Decoder, Gaussian, Posterior, StandardNormal
from trifold.core.posterior import draw
from trifold.errors import ShapeError, SpecError
from trifold.nets import MLP
from trifold.records import Batch, Pass, Progress, Rows
from trifold.terms import KL, NLL, Objective
from trifold.terms.elbo import gaussian_kl


def gaussian(mean: torch.Tensor, scale: torch.Tensor) -> Independent:
    return Independent(Normal(mean, scale), 1)


def pass_of(qz, prior, batch: Batch, generator: torch.Generator | None = None) -> Pass:
    class Holder:
        pass

    Holder.prior = prior
    return Pass(batch=batch, qz=qz, z=draw(qz, generator), h=qz.mean, vae=Holder, taps={}, progress=Progress.done())


def table(n: int, categories: int) -> Batch:
    return Batch(Rows.of_dense(torch.zeros(n, 1)), torch.ones(n, 1), code={"condition": torch.arange(n) % (categories + 1) - 1})


def conditional(latent: int = 3, categories: int = 4) -> ConditionalGaussian:
    prior = ConditionalGaussian(latent, categories, role="condition")
    with torch.no_grad():
        prior.mean.normal_()
        prior.log_var.normal_()
    return prior


@pytest.mark.parametrize("prior", [StandardNormal(3), conditional()])
@torch.no_grad()
def test_kl_equals_torchs_closed_form(prior):
    batch = table(20, 4)
    qz = gaussian(torch.randn(20, 3), torch.rand(20, 3) + 0.1)
    code = batch.code["condition"]
    mean, var = torch.zeros(20, 3), torch.ones(20, 3)
    if isinstance(prior, ConditionalGaussian):
        known = code >= 0
        mean[known], var[known] = prior.mean[code[known]], prior.log_var[code[known]].exp()
    torch.testing.assert_close(KL()(pass_of(qz, prior, batch)), kl_divergence(qz, gaussian(mean, var.sqrt())), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_monte_carlo_kl_agrees_with_the_closed_form_within_four_and_a_half_standard_errors_over_forty_seeds():
    prior, batch = conditional(), table(50, 4)
    qz = gaussian(torch.randn(50, 3), torch.rand(50, 3) + 0.1)
    closed = KL()(pass_of(qz, prior, batch)).mean()

    class Unknown(ConditionalGaussian):
        def distribution(self, batch):
            return None

        def log_prob(self, z, batch):
            return ConditionalGaussian.distribution(self, batch).log_prob(z)

    hidden = Unknown(3, 4, role="condition")
    hidden.load_state_dict(prior.state_dict())
    draws = torch.stack([KL()(pass_of(qz, hidden, batch, torch.Generator().manual_seed(s))).mean() for s in range(40)])
    assert abs(draws.mean() - closed) < 4.5 * draws.std() / math.sqrt(40)


@torch.no_grad()
def test_a_prior_that_torch_has_no_closed_form_for_is_sampled():
    class Heavy(StandardNormal):
        def distribution(self, batch):
            return Independent(torch.distributions.StudentT(torch.full((batch.n, 2), 5.0)), 1)

    batch, qz = table(400, 2), gaussian(torch.zeros(400, 2), torch.ones(400, 2))
    value = KL()(pass_of(qz, Heavy(2), batch, torch.Generator().manual_seed(0)))
    assert value.shape == (400,)
    assert value.mean() > -4 * value.std() / 20  # a divergence, estimated by one sample: not below 0 by more than 4 standard errors


def test_free_bits_stop_the_penalty_on_the_sum_over_dimensions_below_them():
    mean = torch.tensor([[0.1, 0.1], [3.0, 0.0]], requires_grad=True)
    p = pass_of(gaussian(mean, torch.ones(2, 2)), StandardNormal(2), table(2, 1))
    value = KL(free=0.5)(p)
    torch.testing.assert_close(value, torch.tensor([0.5, 4.5]))
    value.sum().backward()
    assert mean.grad[0].abs().max() == 0
    with pytest.raises(SpecError, match="free"):
        KL(free=-1.0)


def test_an_unknown_category_has_the_standard_normal_prior_and_what_is_not_learned_stays():
    prior = conditional()
    law = prior.distribution(Batch(Rows.of_dense(torch.zeros(1, 1)), torch.ones(1, 1), code={"condition": torch.tensor([-1])}))
    assert (law.mean == 0).all()
    assert (law.variance == 1).all()
    flags = {}
    for what in ("mean", "variance", "both", "neither"):
        flags[what] = tuple(p.requires_grad for p in ConditionalGaussian(2, 2, role="r", learned=what).parameters())
    assert flags == {"mean": (True, False), "variance": (False, True), "both": (True, True), "neither": (False, False)}
    with pytest.raises(SpecError, match="learned"):
        ConditionalGaussian(2, 2, role="r", learned="all")


def linear_vae(weight: torch.Tensor, bias: torch.Tensor, noise: float) -> VAE:
    """x = W z + b + noise: p(x) is N(b, W Wᵀ + s² I) and the posterior N(M⁻¹ Wᵀ (x - b) / s², M⁻¹), M = I + Wᵀ W / s², diagonal here."""
    g, d = weight.shape
    vae = VAE(Posterior(MLP(g, ()), d), StandardNormal(d), Decoder(MLP(d, ())), Gaussian(d, g, variance="fixed", value=noise))
    precision = 1 + weight.square().sum(0) / noise  # the columns of W are orthogonal
    with torch.no_grad():
        vae.likelihood.out.weight.copy_(weight)
        vae.likelihood.out.bias.copy_(bias)
        to_mean = weight.T / noise / precision[:, None]
        vae.posterior.head.weight.copy_(torch.cat([to_mean, torch.zeros(d, g)]))
        vae.posterior.head.bias.copy_(torch.cat([-to_mean @ bias, -precision.log()]))
    return vae


def elbo(vae: VAE, batch: Batch, seeds: int) -> torch.Tensor:
    """[seeds] one-sample estimates of the mean evidence lower bound."""
    objective = Objective({"nll": NLL(), "kl": KL()})
    return torch.stack([-objective(vae(batch, generator=torch.Generator().manual_seed(s))).loss for s in range(seeds)])


@torch.no_grad()
def test_the_best_bound_of_a_linear_gaussian_model_is_its_exact_marginal_likelihood_and_any_other_is_below():
    rng = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(6, 2, generator=rng, dtype=torch.float64))
    weight, bias, noise = (basis * torch.tensor([1.5, 0.7])).float(), torch.randn(6, generator=rng), 0.3
    x = torch.randn(300, 2, generator=rng) @ weight.T + bias + math.sqrt(noise) * torch.randn(300, 6, generator=rng)
    batch = Batch(Rows.of_dense(x), torch.ones(300, 1))
    marginal = MultivariateNormal(bias.double(), weight.double() @ weight.double().T + noise * torch.eye(6)).log_prob(x.double()).mean()
    vae = linear_vae(weight, bias, noise)
    values = elbo(vae, batch, 60).double()
    assert abs(values.mean() - marginal) < 4 * values.std() / math.sqrt(60)
    # with the exact posterior, log p(x, z) - log q(z) is the same for every z: no noise at all
    p = vae(batch)
    exact = -NLL()(p) + vae.prior.log_prob(p.z, batch) - p.qz.log_prob(p.z)
    torch.testing.assert_close(exact.mean().double(), marginal, rtol=1e-5, atol=1e-5)
    vae.posterior.head.bias[:2] += 0.3
    assert elbo(vae, batch, 20).mean() < marginal - 0.05


@torch.no_grad()
def test_training_a_linear_vae_reaches_the_marginal_likelihood_of_the_best_linear_model():
    """Probabilistic PCA has its maximum in closed form (Tipping and Bishop 1999): the bound must come within 1 % of a nat of it."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(400, 1, generator=rng) @ torch.tensor([[2.0, 1.0, -1.0, 0.5]]) + 0.5 * torch.randn(400, 4, generator=rng)
    values = torch.linalg.eigvalsh(torch.cov(x.T.double(), correction=0)).flip(0)
    noise = float(values[1:].mean())
    best = -0.5 * (4 * math.log(2 * math.pi) + float(values[0].log()) + 3 * math.log(noise) + 4)
    vae = VAE(Posterior(MLP(4, ()), 1), StandardNormal(1), Decoder(MLP(1, ())), Gaussian(1, 4, variance="fixed", value=noise))
    batch, objective = Batch(Rows.of_dense(x), torch.ones(400, 1)), Objective({"nll": NLL(), "kl": KL()})
    optimizer, generator = torch.optim.Adam(vae.parameters(), lr=0.03), torch.Generator().manual_seed(1)
    with torch.enable_grad():
        for _ in range(600):
            optimizer.zero_grad()
            objective(vae(batch, generator=generator)).loss.backward()
            optimizer.step()
    reached = elbo(vae, batch, 100).double()
    assert reached.mean() < best + 4 * reached.std() / 10
    assert reached.mean() > best - 0.01 - 4 * reached.std() / 10


def test_objective_is_the_weighted_sum_of_its_terms_and_prints_as_a_table():
    from trifold.schedule import Ramp

    objective = Objective({"nll": NLL(), "kl": KL(), "off": KL()}, {"kl": Ramp(2.0, end=0.5), "off": 0.0})
    vae, batch = linear_vae(torch.eye(3, 2), torch.zeros(3), 1.0), Batch(Rows.of_dense(torch.randn(8, 3)), torch.ones(8, 1))
    p = vae(batch, Progress(step=25, steps=100))
    report = objective(p)
    assert report.weights == {"nll": 1.0, "kl": 1.0, "off": 0.0}
    assert set(report.values) == {"nll", "kl"}
    torch.testing.assert_close(report.loss, report.values["nll"] + report.values["kl"])
    assert not report.values["nll"].requires_grad
    assert not objective.joint
    assert [row[:2] for row in objective.table()] == [("nll", "1"), ("kl", "0 → 2"), ("off", "0")]
    assert "0 → 2" in repr(objective)
    with pytest.raises(SpecError, match="unknown"):
        Objective({"nll": NLL()}, {"unknown": 1.0})


def test_a_role_that_the_batch_lacks_is_named():
    vae = VAE(Posterior(MLP(3, (4,), covariates=2), 2, roles=("condition",)), StandardNormal(2), Decoder(MLP(2, (4,))), Gaussian(4, 3))
    with pytest.raises(ShapeError, match="condition"):
        vae(Batch(Rows.of_dense(torch.zeros(2, 3)), torch.ones(2, 1)))
    with pytest.raises(SpecError, match="transform"):
        Posterior(MLP(3, (4,)), 2, transform="log")


def test_the_transform_lognorm_is_the_fields_custom_for_sparse_and_dense_rows():
    from test_oracle_counts import csr_rows

    x = torch.tensor([[0.0, 2.0, 8.0], [1.0, 0.0, 0.0]])
    posterior = Posterior(MLP(3, ()), 1, transform="lognorm")
    expected = torch.log1p(x / x.sum(1, keepdim=True) * 1e4)
    for rows in (Rows.of_dense(x), csr_rows(x)):
        batch = Batch(rows, x.sum(1, keepdim=True))
        torch.testing.assert_close(posterior.seen(batch).to_dense(), expected)


def test_a_draw_has_the_posteriors_mean_and_scale_within_four_standard_errors():
    n = 40_000
    qz = gaussian(torch.full((n, 1), 2.0), torch.full((n, 1), 0.5))
    z = draw(qz, torch.Generator().manual_seed(0)).double()
    assert abs(z.mean() - 2) < 4 * 0.5 / math.sqrt(n)
    assert abs(z.var() - 0.25) < 4 * 0.25 * math.sqrt(2 / n)


@pytest.mark.parametrize("prior_learns", [True, False])
def test_the_closed_form_of_two_gaussians_and_its_gradients_are_those_of_torch(prior_learns):
    parts = [torch.randn(7, 3, dtype=torch.float64), torch.rand(7, 3, dtype=torch.float64) + 0.1]
    parts += [torch.randn(7, 3, dtype=torch.float64), torch.rand(7, 3, dtype=torch.float64) + 0.1]
    ours, other = ([t.clone().requires_grad_(k < 2 or prior_learns) for k, t in enumerate(parts)] for _ in range(2))
    value, expected = gaussian_kl(*ours), kl_divergence(gaussian(*other[:2]), gaussian(*other[2:]))
    weight = torch.randn(7, dtype=torch.float64)
    (weight * value).sum().backward()
    (weight * expected).sum().backward()
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    for a, b in zip(ours, other, strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-12)


def test_cells_of_known_category_need_no_mixture_and_get_the_same_divergence_beside_cells_that_do():
    prior = ConditionalGaussian(3, 4, role="condition", unknown="mixture")
    with torch.no_grad():
        prior.mean.normal_()
        prior.log_var.normal_()
    mean, scale, code = torch.randn(8, 3), torch.rand(8, 3) + 0.1, torch.arange(8) % 4

    def divergence(code):
        prior.zero_grad()
        m = mean[: len(code)].clone().requires_grad_()
        batch = Batch(Rows.of_dense(torch.zeros(len(code), 1)), torch.ones(len(code), 1), code={"condition": code})
        value = KL()(pass_of(gaussian(m, scale[: len(code)]), prior, batch))
        value[:6].sum().backward()
        return value.detach(), m.grad, prior.mean.grad.clone()

    one_unknown = torch.cat([code[:7], torch.tensor([-1])])
    (known, of_mean, of_prior), (some, of_mean_too, of_prior_too) = divergence(code), divergence(one_unknown)
    torch.testing.assert_close(known[:7], some[:7])
    torch.testing.assert_close(of_mean, of_mean_too)
    torch.testing.assert_close(of_prior, of_prior_too)
    assert known[7] != some[7]


def test_a_second_derivative_of_the_closed_form_is_refused():
    m = torch.randn(4, 2, requires_grad=True)
    with pytest.raises(SpecError, match="first derivative only"):
        torch.autograd.grad(gaussian_kl(m, torch.ones(4, 2), torch.zeros(4, 2), torch.ones(4, 2)).sum(), m, create_graph=True)
