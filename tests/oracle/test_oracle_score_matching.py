"""Score matching: exact derivatives, Hutchinson, and densities that it finds again."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from trifold.core import Blocks, ConditionalGaussian, Energy, Mixture, StandardNormal
from trifold.errors import SpecError
from trifold.records import Batch, Pass, Progress, Rows
from trifold.terms import ScoreMatching, score_matching


def batch_of(n: int, categories: int = 1) -> Batch:
    return Batch(Rows.of_dense(torch.zeros(n, 1)), torch.ones(n, 1), code={"invariant": torch.arange(n) % categories})


def pass_of(z: torch.Tensor, prior, categories: int = 1) -> Pass:
    class Holder:
        pass

    Holder.prior = prior
    return Pass(batch=batch_of(len(z), categories), qz=None, z=z, h=z, vae=Holder, taps={}, progress=Progress.done())


def energy(latent: int, categories: int = 2, hidden=(7, 5)) -> Energy:
    prior = Energy(latent, categories, role="invariant", hidden=hidden).double()
    with torch.no_grad():
        prior.tilt.normal_()
    return prior


def fitted(prior: nn.Module, p: Pass, *, steps: int = 200) -> nn.Module:
    """The prior at a minimum of the objective over all cells of the pass."""
    optimizer = torch.optim.LBFGS(prior.parameters(), max_iter=steps, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = ScoreMatching()(p).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return prior


def standard_errors(prior: nn.Module, p: Pass, names: list[str]) -> torch.Tensor:
    """Of the minimiser, by the sandwich H⁻¹ J H⁻¹ / n, derivatives in the parameters by central differences."""
    parameters = [dict(prior.named_parameters())[name] for name in names]
    where = nn.utils.parameters_to_vector(parameters).detach()
    step = 1e-4

    def per_cell(at: torch.Tensor) -> torch.Tensor:
        nn.utils.vector_to_parameters(at, parameters)
        return ScoreMatching()(p).detach()

    def gradient(at: torch.Tensor) -> torch.Tensor:
        eye = torch.eye(len(at), dtype=at.dtype) * step
        return torch.stack([(per_cell(at + e) - per_cell(at - e)) / (2 * step) for e in eye], 1)

    own = gradient(where)
    eye = torch.eye(len(where), dtype=where.dtype) * step
    hessian = torch.stack([(gradient(where + e) - gradient(where - e)).mean(0) / (2 * step) for e in eye])
    nn.utils.vector_to_parameters(where, parameters)
    inverse = torch.linalg.inv(hessian)
    return (inverse @ torch.cov(own.T) @ inverse / len(own)).diagonal().sqrt()


def test_it_equals_a_loop_over_dimensions_of_the_exact_hessian():
    prior, z = energy(4), torch.randn(6, 4, dtype=torch.float64)
    batch = batch_of(6, 2)
    got = ScoreMatching()(pass_of(z, prior, 2))
    for i in range(6):
        one = Batch(Rows.of_dense(torch.zeros(1, 1)), torch.ones(1, 1), code={"invariant": batch.code["invariant"][i : i + 1]})

        def height(v, one=one):
            return prior.log_prob(v[None], one)[0]

        hessian, score = torch.autograd.functional.hessian(height, z[i]), torch.autograd.functional.jacobian(height, z[i])
        torch.testing.assert_close(got[i], hessian.diagonal().sum() + 0.5 * score.square().sum())
        assert (hessian - torch.diag(hessian.diagonal())).abs().max() > 1e-3, "the sum of a row would be something else"


def test_of_the_standard_normal_it_is_half_the_square_less_the_dimension():
    z = torch.randn(5, 3)
    for probes in (0, 2):  # the Hessian is diagonal: Hutchinson has no noise
        torch.testing.assert_close(ScoreMatching(probes=probes)(pass_of(z, StandardNormal(3))), 0.5 * z.square().sum(1) - 3)


def test_hutchinsons_estimate_is_unbiased_within_four_and_a_half_standard_errors_per_cell():
    prior, z = energy(5), torch.randn(8, 5, dtype=torch.float64)
    exact = ScoreMatching()(pass_of(z, prior, 2))
    draws = torch.stack([ScoreMatching(probes=1)(pass_of(z, prior, 2)).detach() for _ in range(800)])
    assert ((draws.mean(0) - exact).abs() < 4.5 * draws.std(0) / math.sqrt(800)).all()
    several = torch.stack([ScoreMatching(probes=8)(pass_of(z, prior, 2)).detach() for _ in range(200)])
    assert several.std(0).mean() == pytest.approx(float(draws.std(0).mean()) / math.sqrt(8), rel=0.15)


def test_the_gradient_goes_to_the_prior_only_and_equals_finite_differences():
    prior, z = energy(3), torch.randn(10, 3, dtype=torch.float64, requires_grad=True)
    p = pass_of(z, prior, 2)
    ScoreMatching()(p).mean().backward()
    assert z.grad is None
    for name in ("tilt", "gaussian.log_var", "statistics.first.weight"):
        parameter = prior.get_parameter(name)
        with torch.no_grad():
            values = []
            for step in (1e-5, -2e-5):
                parameter[0, 1] += step
                values.append(ScoreMatching()(p).mean())  # under no_grad, as validation runs it
            parameter[0, 1] += 1e-5
        assert float((values[0] - values[1]) / 2e-5) == pytest.approx(float(parameter.grad[0, 1]), rel=1e-5, abs=1e-9)


def test_a_block_is_fitted_alone():
    own, other = energy(2), ConditionalGaussian(1, 2, role="invariant").double()
    prior, z = Blocks({"spurious": other, "invariant": own}), torch.randn(9, 3, dtype=torch.float64)
    value = ScoreMatching("invariant")(pass_of(z, prior, 2))
    torch.testing.assert_close(value, ScoreMatching()(pass_of(z[:, 1:], own, 2)))
    both = ScoreMatching()(pass_of(z, prior, 2))
    torch.testing.assert_close(both, value + ScoreMatching("spurious")(pass_of(z, prior, 2)))
    with pytest.raises(SpecError, match=r"invariante.*Did you mean 'invariant'"):
        ScoreMatching("invariante")(pass_of(z, prior, 2))
    with pytest.raises(SpecError, match="none"):
        ScoreMatching("invariant")(pass_of(z, own, 2))
    with pytest.raises(SpecError, match="probes"):
        ScoreMatching(probes=-1)


def test_it_finds_the_moments_of_gaussians_by_category_as_maximum_likelihood_does():
    """Of a Gaussian the minimiser is the sample's mean and variance, within 4.5 standard errors of the truth."""
    n, mean, scale = 4000, torch.tensor([[1.0, -2.0], [0.0, 0.5]]), torch.tensor([[0.5, 2.0], [1.0, 1.5]])
    z = (mean.repeat(n // 2, 1) + scale.repeat(n // 2, 1) * torch.randn(n, 2)).double()
    prior = ConditionalGaussian(2, 2, role="invariant").double()
    fitted(prior, pass_of(z, prior, 2))
    for k in (0, 1):
        own = z[k::2]
        torch.testing.assert_close(prior.mean[k].detach(), own.mean(0), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(prior.log_var[k].exp().detach(), own.var(0, correction=0), rtol=1e-3, atol=1e-4)
        assert ((prior.mean[k] - mean[k]).abs() < 4.5 * scale[k] / math.sqrt(n / 2)).all()
        assert ((prior.log_var[k] - 2 * scale[k].log()).abs() < 4.5 * math.sqrt(2 / (n / 2))).all()


def test_it_finds_the_parameters_of_a_two_component_mixture_within_four_and_a_half_standard_errors():
    n = 8000
    truth = Mixture(2, 2).double()
    with torch.no_grad():
        truth.mean.copy_(torch.tensor([[-1.2, 0.0], [1.2, 0.5]]))
        truth.log_var.copy_(torch.tensor([[0.0, 0.3], [-0.4, 0.0]]))
        truth.logit.copy_(torch.tensor([0.0, 0.6]))
        z = truth.distribution(batch_of(n)).sample()
    prior = Mixture(2, 2).double()
    with torch.no_grad():
        prior.mean.copy_(torch.tensor([[-0.5, 0.0], [0.5, 0.0]]))
    p = pass_of(z, prior)
    fitted(prior, p)
    names = ["inner.mean", "inner.log_var", "odds"]
    one, true = _OneLogit(prior), _OneLogit(truth)
    found, expected = (nn.utils.parameters_to_vector([m.get_parameter(k) for k in names]).detach() for m in (one, true))
    error = standard_errors(one, pass_of(z, one), names)
    assert ((found - expected).abs() < 4.5 * error).all()
    assert error.max() < 0.4, "an error that large would forgive anything"


class _OneLogit(nn.Module):
    """A mixture of two whose weights are one number, so that its information matrix has an inverse."""

    def __init__(self, inner: Mixture):
        super().__init__()
        self.inner = inner
        self.odds = nn.Parameter((inner.logit[1] - inner.logit[0]).detach().clone())

    def log_prob(self, z: torch.Tensor, batch: Batch) -> torch.Tensor:
        logit = torch.stack([torch.zeros_like(self.odds), self.odds])
        return torch.func.functional_call(self.inner, {"logit": logit}, (z, batch))


def law_of(kind: str) -> torch.distributions.Distribution:
    if kind == "correlated":
        return MultivariateNormal(torch.zeros(2).double(), torch.tensor([[1.0, 0.7], [0.7, 1.0]]).double())
    mean = torch.tensor([[-1.5, -1.0], [1.5, 1.0]]).double()
    return MixtureSameFamily(Categorical(torch.ones(2).double()), Independent(Normal(mean, torch.full_like(mean, 0.7)), 1))


@pytest.mark.parametrize("kind", ["correlated", "mixture"])
def test_an_energy_learns_densities_that_do_not_factorise(kind):
    """KL divergence on a grid, the energy's constant by summation, is a tenth of that of the best factorised Gaussian.

    On fresh draws each step, as in training: on a fixed sample the objective has no minimum, since a log density that bends ever more
    sharply at single cells lowers it without end.
    """
    law = law_of(kind)
    prior = Energy(2, 1, role="invariant", hidden=(12, 8)).double()
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)
    for _ in range(600):
        optimizer.zero_grad()
        ScoreMatching()(pass_of(law.sample((256,)), prior)).mean().backward()
        optimizer.step()
        schedule.step()
    axis = torch.linspace(-15, 15, 301, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    with torch.no_grad():
        true = law.log_prob(grid).log_softmax(0)
        flat = Normal(law.mean, law.stddev).log_prob(grid).sum(1).log_softmax(0)
        own = prior.log_prob(grid, batch_of(len(grid))).log_softmax(0)
        apart, gaussian = ((true.exp() * (true - q)).sum().item() for q in (own, flat))
    assert gaussian > 0.3
    assert apart < gaussian / 10


@pytest.mark.parametrize("n", [1, 3])
def test_few_cells_and_unknown_categories_give_finite_values_and_gradients(n):
    prior = energy(2)
    p = pass_of(torch.randn(n, 2, dtype=torch.float64), prior, 1)
    p.batch.code["invariant"][0] = -1
    for probes in (0, 1):
        value = ScoreMatching(probes=probes)(p)
        value.mean().backward()
        assert torch.isfinite(value).all()
    assert all(torch.isfinite(q.grad).all() for q in prior.parameters())


def test_a_density_that_is_linear_or_not_smooth_to_second_order_is_no_error():
    z = torch.randn(4, 2)
    torch.testing.assert_close(score_matching(lambda v: v.sum(1), z), torch.ones(4))
