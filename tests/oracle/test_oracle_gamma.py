"""Log-gamma and digamma differences against exact sums and scipy in float64."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from scipy import special

from trifold.dist import digamma_difference, lgamma_ratio

THETA = np.logspace(-4, 6, 41)
FEW = np.array([0, 1, 2, 3, 7, 19, 20, 21, 50, 300, 2000])
MANY = np.array([12_345, 100_000, 1_000_000])


@functools.lru_cache(maxsize=2)
def rising(x: int, single: bool) -> tuple[np.ndarray, np.ndarray]:
    return exact_sums(THETA.astype(np.float32).astype(np.float64) if single else THETA, x)


def exact_sums(theta: np.ndarray, x: int) -> tuple[np.ndarray, np.ndarray]:
    """ln Γ(θ+x) - ln Γ(θ) = Σ ln(θ+j) and ψ(θ+x) - ψ(θ) = Σ 1/(θ+j), j < x: nothing cancels."""
    terms = theta[:, None] + np.arange(x)
    return np.log(terms).sum(1), (1 / terms).sum(1)


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-10), (torch.float32, 3e-6)])
@pytest.mark.parametrize("x", [*FEW, *MANY])
def test_rising_factorials_equal_the_sum_of_logs_at_any_inverse_dispersion(dtype, relative, x):
    theta = torch.tensor(THETA, dtype=dtype)
    log, harmonic = rising(int(x), dtype == torch.float32)
    at = torch.full_like(theta, float(x))
    near_zero = np.log(THETA) if x else np.zeros_like(THETA)  # around theta = 1 the logarithm itself is 0: compare with its terms
    scale = np.maximum(np.abs(log), np.abs(near_zero)) + (x > 0)
    assert (np.abs(lgamma_ratio(theta, at).double().numpy() - log) <= relative * scale + 1e-30).all()
    np.testing.assert_allclose(digamma_difference(theta, at).double().numpy(), harmonic, rtol=relative, atol=1e-30)


def test_the_plain_difference_would_fail_where_ours_holds():
    theta, x = torch.tensor(3e5), torch.tensor(2.0)
    truth = np.log(3e5) + np.log(3e5 + 1)
    plain = float(torch.lgamma(theta + x) - torch.lgamma(theta))
    assert abs(plain - truth) > 1e-3 * truth
    assert abs(float(lgamma_ratio(theta, x)) - truth) < 1e-6 * truth


def test_digamma_difference_is_the_gradient_of_the_ratio():
    theta = torch.logspace(-3, 6, 50, dtype=torch.float64, requires_grad=True)
    x = torch.linspace(0, 500, 50, dtype=torch.float64).round()
    (gradient,) = torch.autograd.grad(lgamma_ratio(theta, x).sum(), theta)
    torch.testing.assert_close(gradient, digamma_difference(theta, x), rtol=1e-8, atol=1e-16)
    truth = special.digamma(theta.detach().numpy() + x.numpy()) - special.digamma(theta.detach().numpy())
    np.testing.assert_allclose(gradient.numpy(), truth, rtol=1e-7, atol=1e-14)
