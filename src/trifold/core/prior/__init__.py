"""Priors p(z | c)."""

from trifold.core.prior.base import Prior
from trifold.core.prior.gaussian import ConditionalGaussian, StandardNormal

__all__ = ["ConditionalGaussian", "Prior", "StandardNormal"]
