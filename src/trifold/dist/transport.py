r"""Moving counts from one distribution to another so that each cell keeps its own noise.

A negative binomial is a Poisson whose rate is gamma distributed: :math:`x \sim \mathrm{Poisson}(\mu r)`,
:math:`r \sim \mathrm{Gamma}(\theta, \theta)`. Given x, r is gamma again and is drawn; then x is moved from the rate :math:`\mu r` to
:math:`\mu' r'`: thinned binomially to a smaller rate, topped up with a Poisson to a larger one. That keeps the law exact, changes as few
molecules as it can, and gives x back where nothing changes. This is the count form of x + g(z, s') - g(z, s).
"""

from __future__ import annotations

import torch
from torch import Tensor

from trifold.dist.negative_binomial import draw_counts, draw_gamma

_TINY = 1e-12


def move_counts(
    x: Tensor, mean: Tensor, target: Tensor, theta: Tensor, theta_target: Tensor, *, generator: torch.Generator | None = None
) -> Tensor:
    """Counts that follow NB(target, theta_target) if x follows NB(mean, theta).

    Args:
        x: [n, g] counts.
        mean, target: [n, g] expected counts before and after.
        theta, theta_target: Inverse dispersions before and after, [g] or [n, g]; infinite for a Poisson.
        generator: Where the noise comes from.

    Returns:
        [n, g] counts. Where the inverse dispersions differ, the gamma noise is moved by its quantiles.
    """
    theta, theta_target = theta.expand_as(x), theta_target.expand_as(x)
    noise = _noise(x, mean, theta, generator)
    before, after = mean * noise, target * _requantile(noise, theta, theta_target)
    share = torch.where(after < before, after / before, torch.ones_like(before)).to(x.dtype)
    kept = torch.binomial(x, share, generator=generator)
    return kept + torch.poisson((after - before).clamp_min(0).to(x.dtype), generator=generator)


def move_zero_inflated(
    x: Tensor,
    mean: Tensor,
    target: Tensor,
    theta: Tensor,
    theta_target: Tensor,
    gate: Tensor,
    gate_target: Tensor,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Counts that follow the target zero-inflated negative binomial if x follows the source's.

    Args:
        x: [n, g] counts.
        mean, target: [n, g] expected counts of the negative binomial part before and after.
        theta, theta_target: Inverse dispersions before and after, [g] or [n, g].
        gate, gate_target: [n, g] log odds of a structural zero before and after.
        generator: Where the noise comes from.

    Returns:
        [n, g] counts.
    """
    off, off_target = torch.sigmoid(gate), torch.sigmoid(gate_target)
    at_zero = -theta * torch.log1p(mean / theta)
    chance = torch.where(x > 0, torch.zeros_like(x), torch.sigmoid(gate - at_zero))
    structural = torch.bernoulli(chance, generator=generator)
    drawn = draw_counts(mean, theta, generator=generator)  # what a structural zero would have shown
    moved = move_counts(torch.where(structural > 0, drawn, x), mean, target, theta, theta_target, generator=generator)
    stay_off = torch.bernoulli((off_target / off.clamp_min(_TINY)).clamp(max=1), generator=generator)
    turn_off = torch.bernoulli(((off_target - off) / (1 - off).clamp_min(_TINY)).clamp(0, 1), generator=generator)
    return torch.where(torch.where(structural > 0, stay_off, turn_off) > 0, torch.zeros_like(x), moved)


def _noise(x: Tensor, mean: Tensor, theta: Tensor, generator: torch.Generator | None) -> Tensor:
    """r given x: Gamma(theta + x, rate theta + mean), with mean 1 before x is seen; 1 for a Poisson."""
    if torch.isinf(theta).all():
        return torch.ones_like(x)
    theta, x, mean = theta.double(), x.double(), mean.double()  # in float32 the noise of a small theta underflows
    return draw_gamma(theta + x, 1 / (theta + mean), generator=generator)


def _requantile(noise: Tensor, theta: Tensor, target: Tensor) -> Tensor:
    """The quantile of Gamma(target, target) at which the noise stands in Gamma(theta, theta)."""
    other = theta != target
    if not bool(other.any()):
        return noise
    from scipy.special import gammainc, gammaincinv

    a, b, r = (t[other].detach().double().cpu().numpy() for t in (theta, target, noise))
    moved = gammaincinv(b, gammainc(a, a * r).clip(0, 1 - 1e-12)) / b
    return noise.clone().masked_scatter(other, torch.from_numpy(moved).to(noise))
