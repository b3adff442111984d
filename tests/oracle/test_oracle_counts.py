"""Negative binomial, zero-inflated and Poisson log-probabilities against scipy and a cancellation-free reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import special, stats

from trifold import dist
from trifold.core import NegativeBinomial, Poisson, ZeroInflated
from trifold.dist import nb_log_prob, zinb_log_prob
from trifold.dist.gamma import nb_log_pmf
from trifold.records import Batch, Rows

X = np.array([0, 1, 2, 3, 7, 19, 20, 21, 22, 50, 300, 1000, 12_345, 1e5, 3e5, 1e6])
MEAN = np.logspace(-8, 5, 14)
THETA = np.logspace(-4, 6, 21)


def grid(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(a.ravel(), dtype=dtype) for a in np.meshgrid(X, MEAN, THETA))


def reference(x: np.ndarray, mean: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """float64; the binomial coefficient through scipy's log-beta, which does not cancel."""
    with np.errstate(divide="ignore", invalid="ignore"):
        chosen = np.where(x > 0, -np.log(np.maximum(x, 1)) - special.betaln(np.maximum(x, 1), theta), 0.0)
    return chosen - x * np.log1p(theta / mean) - theta * np.log1p(mean / theta)


def csr_rows(dense: torch.Tensor) -> Rows:
    cell, gene = torch.nonzero(dense, as_tuple=True)
    crow = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(cell, minlength=len(dense)).cumsum(0)])
    return Rows.of_csr(crow, gene, dense[cell, gene], tuple(dense.shape))


def test_the_reference_is_scipys_negative_binomial_where_scipy_can_hold_its_parameter():
    x, mean, theta = (t.numpy() for t in grid(torch.float64))
    fair = mean / (theta + mean) > 1e-6  # scipy takes p = theta / (theta + mean), which rounds when it is near 1
    truth = stats.nbinom.logpmf(x[fair], theta[fair], theta[fair] / (theta[fair] + mean[fair]))
    np.testing.assert_allclose(reference(x, mean, theta)[fair], truth, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-9), (torch.float32, 3e-5)])
def test_each_entry_equals_the_reference_for_counts_to_a_million(dtype, relative):
    x, mean, theta = grid(dtype)
    truth = reference(*(t.double().numpy() for t in (x, mean, theta)))
    got = dist.NegativeBinomial(mean, theta).log_prob(x).double().numpy()
    np.testing.assert_allclose(got, truth, rtol=relative, atol=1e-9)
    gate = torch.linspace(-8, 8, len(x), dtype=dtype)
    soft, base = np.logaddexp(0, gate.double().numpy()), truth
    inflated = np.where(x.numpy() > 0, base, np.logaddexp(gate.double().numpy(), base)) - soft
    got = dist.ZeroInflated(dist.NegativeBinomial(mean, theta), gate).log_prob(x).double().numpy()
    np.testing.assert_allclose(got, inflated, rtol=relative, atol=1e-6 if dtype == torch.float32 else 1e-9)


def test_counts_near_their_mean_hold_in_float32_where_terms_of_a_million_cancel_to_a_few_nats():
    rng = np.random.default_rng(0)
    mean, theta = 10 ** rng.uniform(0, 6, 20_000), 10 ** rng.uniform(-1, 6, 20_000)
    x = np.maximum(1, rng.negative_binomial(theta, theta / (theta + mean)))
    x, log_mean, log_theta = (torch.tensor(a, dtype=torch.float32) for a in (x, np.log(mean), np.log(theta)))
    truth = reference(x.double().numpy(), log_mean.double().exp().numpy(), log_theta.double().exp().numpy())
    np.testing.assert_allclose(nb_log_pmf(x, log_mean, log_theta).numpy(), truth, rtol=5e-5, atol=2e-4)


@pytest.mark.parametrize("mean", [1e-3, 0.5, 30.0])
@pytest.mark.parametrize("theta", [0.05, 1.0, 40.0, 1e5])
def test_probabilities_sum_to_one(mean, theta):
    base = dist.NegativeBinomial(torch.tensor(mean, dtype=torch.float64), torch.tensor(theta, dtype=torch.float64))
    x = torch.arange(60_000, dtype=torch.float64)
    for law in (base, dist.ZeroInflated(base, torch.tensor(-0.7, dtype=torch.float64))):
        assert float(law.log_prob(x).exp().sum()) == pytest.approx(1, abs=1e-8)


def test_large_inverse_dispersion_gives_a_poisson():
    x, mean = torch.arange(0, 60.0), torch.full((60,), 12.0)
    truth = torch.distributions.Poisson(mean.double()).log_prob(x.double())
    torch.testing.assert_close(dist.NegativeBinomial(mean, torch.tensor(1e6)).log_prob(x).double(), truth, rtol=1e-4, atol=1e-4)


def problem(n: int = 7, g: int = 11, *, per_cell: bool, seed: int = 0) -> tuple[torch.Tensor, ...]:
    rng = torch.Generator().manual_seed(seed)
    x = torch.poisson(torch.full((n, g), 3.0), generator=rng) * (torch.rand(n, g, generator=rng) < 0.4)
    x[0] = 0  # an empty cell
    x[:, 1] = 0  # a gene that never occurs
    x[1, 2], x[2, 3], x[3, 4] = 40, 1e6, 25_000
    scores = 2 * torch.randn(n, g, generator=rng)
    log_theta = 4 * torch.randn((n, g) if per_cell else (g,), generator=rng)
    return x, scores, x.sum(1, keepdim=True).clamp_min(1).log(), log_theta, torch.randn(n, g, generator=rng)


def dense_formula(x, scores, log_size, log_theta, gate):
    """The whole formula in float64, differentiated by autograd."""
    log_mu, theta = torch.log_softmax(scores, 1) + log_size, log_theta.exp()
    spread = torch.nn.functional.softplus(log_mu - log_theta)
    base = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1) - theta * spread
    base = base - x * torch.nn.functional.softplus(log_theta - log_mu)
    if gate is None:
        return base
    return torch.where(x > 0, base, torch.logaddexp(gate, base)) - torch.nn.functional.softplus(gate)


@pytest.mark.parametrize("inflated", [False, True])
@pytest.mark.parametrize("per_cell", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_the_split_form_and_its_gradients_equal_the_dense_formula_in_float64(inflated, per_cell, sparse):
    x, scores, log_size, log_theta, gate = problem(per_cell=per_cell)
    single = [t.clone().requires_grad_() for t in (scores, log_theta, gate)]
    rows = csr_rows(x) if sparse else Rows.of_dense(x)
    up = torch.linspace(0.5, 2, len(x))
    s, t, d = single
    got = zinb_log_prob(s, log_size, t, d, rows) if inflated else nb_log_prob(s, log_size, t, rows)
    double = [t.double().requires_grad_() for t in (scores, log_theta, gate)]
    terms = dense_formula(x.double(), double[0], log_size.double(), double[1], double[2] if inflated else None)
    torch.testing.assert_close(got.double(), terms.sum(1), rtol=2e-6, atol=1e-5)
    (got * up).sum().backward()
    (terms.sum(1) * up.double()).sum().backward()
    for ours, truth in list(zip(single, double, strict=True))[: 2 + inflated]:
        scale = float(truth.grad.abs().max())
        torch.testing.assert_close(ours.grad.double(), truth.grad, rtol=2e-5, atol=1e-6 * scale)


def test_sparse_rows_give_the_same_bits_as_dense_ones():
    x, scores, log_size, log_theta, gate = problem(per_cell=False)
    assert torch.equal(nb_log_prob(scores, log_size, log_theta, csr_rows(x)), nb_log_prob(scores, log_size, log_theta, Rows.of_dense(x)))
    a, b = (zinb_log_prob(scores, log_size, log_theta, gate, r) for r in (csr_rows(x), Rows.of_dense(x)))
    assert torch.equal(a, b)


def test_the_gradient_in_the_rate_is_zero_at_the_mean_even_for_a_million_counts():
    scores = torch.zeros(1, 2, requires_grad=True)
    x = torch.tensor([[1e6, 1e6]])
    nb_log_prob(scores, x.sum(1, keepdim=True).log(), torch.zeros(2), Rows.of_dense(x)).sum().backward()
    assert float(scores.grad.abs().max()) < 1e-3  # the plain x (1 - f) is off by 6 % of a count here


@pytest.mark.parametrize("likelihood", [NegativeBinomial, ZeroInflated])
def test_inverse_dispersion_by_condition_selects_the_row_of_each_cell(likelihood):
    like = likelihood(3, 5, dispersion="condition", conditions=2).requires_grad_(False)
    for key, parameter in like.named_parameters():
        if "theta" in key:
            parameter.normal_(std=0.1)
    h, x = torch.randn(4, 3), torch.poisson(torch.full((4, 5), 2.0))
    size, code = x.sum(1, keepdim=True) + 1, torch.tensor([1, 0, -1, 1])
    together = Batch(Rows.of_dense(x), size, code={"condition": code})
    got, law = like.log_prob(h, together), like.distribution(h, together)
    theta = getattr(law, "base", law).theta
    assert torch.equal(theta[0], theta[3])
    assert not torch.isclose(theta[0], theta[1]).any()
    assert not torch.isclose(theta[2], theta[0]).any()
    torch.testing.assert_close(got, law.log_prob(x).sum(1))
    for i in range(4):
        alone = Batch(Rows.of_dense(x[i : i + 1]), size[i : i + 1], code={"condition": code[i : i + 1]})
        torch.testing.assert_close(got[i : i + 1], like.log_prob(h[i : i + 1], alone))


@pytest.mark.parametrize("sparse", [False, True])
def test_poisson_equals_torchs_for_counts_to_a_million(sparse):
    x, scores, log_size, _, _ = problem(per_cell=False)
    like = Poisson(11, 11)
    with torch.no_grad():
        like.out.weight.copy_(torch.eye(11))
        like.out.bias.zero_()
    batch = Batch(csr_rows(x) if sparse else Rows.of_dense(x), log_size.exp())
    rate = torch.softmax(scores.double(), 1) * batch.size.double()
    truth = torch.distributions.Poisson(rate).log_prob(x.double())
    scale = (x * x.clamp_min(1).log()).sum(1).double() + 1  # the terms that cancel
    assert ((like.log_prob(scores, batch).double() - truth.sum(1)).abs() <= 1e-6 * scale).all()


def test_a_library_size_below_one_is_taken_as_it_is_by_every_view():
    like = NegativeBinomial(2, 3).requires_grad_(False)
    x = torch.tensor([[0.0, 1.0, 0.0]])
    batch, h = Batch(Rows.of_dense(x), torch.tensor([[0.25]])), torch.randn(1, 2)
    assert float(like.mean(h, batch).sum()) == pytest.approx(0.25)
    torch.testing.assert_close(like.log_prob(h, batch), like.distribution(h, batch).log_prob(x).sum(1))
