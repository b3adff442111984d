"""Log-gamma and digamma differences, and the negative binomial's log-probability, in forms that hold in float32."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LARGE = 20.0  # from here on the Stirling series is exact to 1e-12, and log-gamma itself starts to cancel


def lgamma_ratio(theta: Tensor, x: Tensor) -> Tensor:
    r"""Logarithm of a rising factorial, :math:`\ln\Gamma(\theta + x) - \ln\Gamma(\theta)`, in nats.

    The plain difference cancels at large theta: in float32 it is off by up to 39 %. There, the difference of the two Stirling
    series is used, in which nothing large is subtracted.

    Args:
        theta: Inverse dispersion, > 0, any shape.
        x: Counts, >= 0, broadcast against theta.

    Returns:
        The logarithm, of the common shape.
    """
    small = theta.clamp_max(_LARGE)
    return torch.where(theta > _LARGE, _rise(theta.clamp_min(_LARGE), x), torch.lgamma(small + x) - torch.lgamma(small))


def digamma_difference(theta: Tensor, x: Tensor) -> Tensor:
    r""":math:`\psi(\theta + x) - \psi(\theta)`, the derivative of :func:`lgamma_ratio` in theta.

    Args:
        theta: Inverse dispersion, > 0, any shape.
        x: Counts, >= 0, broadcast against theta.

    Returns:
        The difference, of the common shape.
    """
    safe = theta.clamp_min(_LARGE)
    u, v = 1 / safe, 1 / (safe + x)
    series = torch.log1p(x * u) + x * u * v * (0.5 + (u + v) * (1 / 12 - (u * u + v * v) / 120))
    small = theta.clamp_max(_LARGE)
    return torch.where(theta > _LARGE, series, torch.digamma(small + x) - torch.digamma(small))


def nb_log_pmf(x: Tensor, log_mu: Tensor, log_theta: Tensor) -> Tensor:
    r"""log p of counts above zero under a negative binomial, nats, each entry for itself.

    Where x and theta are both large, the terms of the usual formula are each of order x and cancel to a few nats. There it is written
    by its deviance (Loader 2000), whose two logarithms are near zero where the count is near its mean:

    .. math:: \log p = -x \log\frac{x(\theta+\mu)}{(x+\theta)\mu} - \theta \log\frac{\theta+\mu}{\theta+x}
              + \tfrac12 \log\frac{\theta}{2\pi x (x+\theta)} + \text{Stirling's remainders}

    Args:
        x: Counts, > 0.
        log_mu: Log of the mean, of the shape of x.
        log_theta: Log of the inverse dispersion, of the shape of x.

    Returns:
        Log-probabilities, of the shape of x. Differentiable in log_mu and log_theta.
    """
    theta = log_theta.exp()
    log_f, log_rest = (-torch.nn.functional.softplus(r) for r in (log_theta - log_mu, log_mu - log_theta))
    few, narrow = x.clamp_max(_LARGE), theta.clamp_max(_LARGE)
    of_few, of_narrow = torch.lgamma(few + 1), torch.lgamma(narrow)
    wide, many = theta > _LARGE, x > _LARGE
    rise = _rise(torch.where(wide, theta, x.clamp_min(_LARGE) + 1), torch.where(wide, few, narrow - 1)) - torch.where(wide, of_few, of_narrow)
    usual = torch.where(wide | many, rise, torch.lgamma(narrow + few) - of_narrow - of_few) + x * log_f + theta * log_rest
    if x.device.type != "cpu":  # to look for them would wait for the device
        return torch.where(wide & many, _by_deviance(x.clamp_min(_LARGE), log_mu, theta.clamp_min(_LARGE), log_f, log_rest), usual)
    large = (wide & many).nonzero(as_tuple=True)
    if not len(large[0]):
        return usual
    return usual.index_put(large, _by_deviance(*(t[large] for t in (x, log_mu, theta, log_f, log_rest))))


def _by_deviance(x: Tensor, log_mu: Tensor, theta: Tensor, log_f: Tensor, log_rest: Tensor) -> Tensor:
    n, mu = x + theta, log_mu.exp()
    with torch.no_grad():
        close_f = (x - mu).abs() * theta < 0.5 * n * mu
        close_rest = (x - mu).abs() < 0.5 * n
    mu_f, mu_rest = torch.where(close_f, mu, x), torch.where(close_rest, mu, x)
    on = torch.where(close_f, torch.log1p((x - mu_f) / mu_f * (theta / n)), torch.log(x / n) - log_f)
    off = torch.where(close_rest, torch.log1p((mu_rest - x) / n), torch.log(theta / n) - log_rest)
    return 0.5 * torch.log(theta / n / x / (2 * math.pi)) + _tail(n) - _tail(theta) - _tail(x) - x * on - theta * off


def _rise(level: Tensor, by: Tensor) -> Tensor:
    """lnΓ(level + by) - lnΓ(level) of a level above 20, by Stirling's series."""
    y = level + by
    return (level - 0.5) * torch.log1p(by / level) + by * (torch.log(y) - 1) + _tail(y) - _tail(level)


def _tail(y: Tensor) -> Tensor:
    inverse = 1 / y
    square = inverse * inverse
    return inverse * (1 / 12 - square * (1 / 360 - square / 1260))
