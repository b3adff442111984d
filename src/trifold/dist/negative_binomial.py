"""The negative binomial in mean and inverse dispersion, with and without zero inflation, as torch distributions."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from trifold.dist.gamma import nb_log_pmf


class NegativeBinomial(Distribution):
    r"""Counts with mean :math:`\mu` and variance :math:`\mu + \mu^2/\theta`.

    Args:
        mean: :math:`\mu \ge 0`, any shape. Counts.
        theta: Inverse dispersion > 0, broadcast against the mean. Dimensionless.
    """

    arg_constraints: ClassVar = {}
    support = constraints.nonnegative_integer

    def __init__(self, mean: Tensor, theta: Tensor, validate_args: bool | None = False):
        self.mu, self.theta = torch.broadcast_tensors(mean, theta)
        super().__init__(self.mu.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """Expected count."""
        return self.mu

    @property
    def variance(self) -> Tensor:
        """Squared standard deviation of the count."""
        return self.mu + self.mu**2 / self.theta

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of each count, nats."""
        value, mu, theta = torch.broadcast_tensors(value, self.mu, self.theta)
        counted = nb_log_pmf(torch.where(value > 0, value, torch.ones_like(value)), torch.log(mu.clamp_min(1e-30)), torch.log(theta))
        return torch.where(value > 0, counted, -theta * torch.log1p(mu / theta))

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size(), *, generator: torch.Generator | None = None) -> Tensor:  # type: ignore[override]  # noqa: B008
        """Counts, drawn as a Poisson whose rate is gamma distributed."""
        shape = self._extended_shape(sample_shape)
        return draw_counts(self.mu.expand(shape), self.theta.expand(shape), generator=generator)


class ZeroInflated(Distribution):
    """A negative binomial that is replaced by a structural zero with some probability.

    Args:
        base: The negative binomial.
        logits: Log odds of a structural zero, of the base's shape.
    """

    arg_constraints: ClassVar = {}
    support = constraints.nonnegative_integer

    def __init__(self, base: NegativeBinomial, logits: Tensor, validate_args: bool | None = False):
        self.base = base
        self.logits = logits
        super().__init__(base.batch_shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """Expected count."""
        return torch.sigmoid(-self.logits) * self.base.mean

    @property
    def variance(self) -> Tensor:
        """Squared standard deviation of the count."""
        kept = torch.sigmoid(-self.logits)
        return kept * self.base.variance + kept * (1 - kept) * self.base.mean**2

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of each count, nats."""
        base = self.base.log_prob(value)
        soft = torch.nn.functional.softplus(self.logits)
        return torch.where(value > 0, base, torch.logaddexp(self.logits, base)) - soft

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size(), *, generator: torch.Generator | None = None) -> Tensor:  # type: ignore[override]  # noqa: B008
        """Counts with structural zeros."""
        counts = self.base.sample(sample_shape, generator=generator)
        kept = torch.bernoulli(torch.sigmoid(-self.logits).expand(counts.shape), generator=generator)
        return counts * kept


def draw_counts(mean: Tensor, theta: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Negative binomial counts of the given mean and inverse dispersion, same shape."""
    return torch.poisson(draw_gamma(theta.expand_as(mean), mean / theta, generator=generator), generator=generator)


def draw_gamma(shape: Tensor, scale: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Gamma variables of the given shape and scale. float32 keeps them above the smallest normal number."""
    return torch._standard_gamma(shape.contiguous(), generator=generator) * scale
