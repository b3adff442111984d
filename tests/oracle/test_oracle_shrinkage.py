"""Shrinkage in closed form against its formula, differentiated by torch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from trifold.errors import SpecError
from trifold.records import Pass, Progress
from trifold.terms import Shrinkage

ROUNDED = 0.03


def a_pass(weight: torch.Tensor, *, base: int, covariates: int, rank: int) -> Pass:
    decoder = SimpleNamespace(network=SimpleNamespace(width=base), covariates=covariates, rank=rank)
    vae = SimpleNamespace(decoder=decoder, likelihood=SimpleNamespace(out=SimpleNamespace(weight=weight)))
    return Pass(batch=None, qz=None, z=None, h=None, vae=vae, taps={}, progress=Progress.done(cells=50))


def formula(weight, base, covariates, rank, *, local, shared, sparse):
    """a |U|² + b |δ|² + s Σ (|δ| + |U|), where |t| is sqrt(t² + ε²) - ε, a cell."""
    delta, u = weight[:, base : base + covariates], weight[:, base + covariates :].unflatten(1, (covariates, rank))
    rounded = sum(((square + ROUNDED**2).sqrt() - ROUNDED).sum() for square in (delta.square(), u.square().sum(2)))
    return (local * u.square().sum() + shared * delta.square().sum() + sparse * rounded) / 50


@pytest.mark.parametrize("rates", [{"local": 2.0, "shared": 0.1, "sparse": 15.0}, {"local": 1.0, "shared": 0.5, "sparse": 0.0}])
@pytest.mark.parametrize(("covariates", "rank"), [(1, 3), (5, 4), (3, 1), (2, 0)])
def test_value_and_gradient_are_those_of_the_formula(rates, covariates, rank):
    weight = torch.randn(9, 4 + covariates * (1 + rank), dtype=torch.float64) * torch.logspace(-3, 0, 9, dtype=torch.float64)[:, None]
    weight[0] = 0
    ours, other = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    value = Shrinkage(**rates)(a_pass(ours, base=4, covariates=covariates, rank=rank))
    expected = formula(other, 4, covariates, rank, **rates) if rank else formula(other, 4, covariates, 0, **rates)
    (3 * value).backward()
    (3 * expected).backward()
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.grad, other.grad, rtol=1e-12, atol=1e-12)
    assert (ours.grad[:, :4] == 0).all()


def test_under_mixed_precision_it_stays_in_float32():
    weight = torch.randn(20, 4 + 3 * 5)
    p = a_pass(weight, base=4, covariates=3, rank=4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = Shrinkage()(p)
    torch.testing.assert_close(value, Shrinkage()(p), rtol=0, atol=0)


def test_a_second_derivative_is_refused():
    weight = torch.randn(5, 8, requires_grad=True)
    value = Shrinkage()(a_pass(weight, base=2, covariates=2, rank=2))
    with pytest.raises(SpecError, match="first derivative only"):
        torch.autograd.grad(value, weight, create_graph=True)
