"""Likelihoods p(x | z, c)."""

from trifold.core.likelihood.base import Likelihood
from trifold.core.likelihood.bernoulli import Bernoulli
from trifold.core.likelihood.counts import NegativeBinomial, Poisson, ZeroInflated
from trifold.core.likelihood.gaussian import Gaussian

__all__ = ["Bernoulli", "Gaussian", "Likelihood", "NegativeBinomial", "Poisson", "ZeroInflated"]
