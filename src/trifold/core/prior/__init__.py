"""Priors p(z | c)."""

from trifold.core.prior.base import Prior
from trifold.core.prior.blocks import Blocks
from trifold.core.prior.energy import Energy
from trifold.core.prior.gaussian import ConditionalGaussian, StandardNormal
from trifold.core.prior.mixture import Mixture

__all__ = ["Blocks", "ConditionalGaussian", "Energy", "Mixture", "Prior", "StandardNormal"]
