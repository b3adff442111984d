"""The model's pieces: posterior, priors, decoders, likelihoods, and the VAE that holds them."""

from trifold.core.decoder import Decoder, EffectDecoder
from trifold.core.encoders import BlockPosterior
from trifold.core.likelihood import Bernoulli, Gaussian, Likelihood, NegativeBinomial, Poisson, ZeroInflated
from trifold.core.locate import locate
from trifold.core.posterior import Posterior
from trifold.core.prior import Blocks, ConditionalGaussian, Energy, Mixture, Prior, StandardNormal
from trifold.core.start import start
from trifold.core.vae import VAE

__all__ = [
    "VAE",
    "Bernoulli",
    "BlockPosterior",
    "Blocks",
    "ConditionalGaussian",
    "Decoder",
    "EffectDecoder",
    "Energy",
    "Gaussian",
    "Likelihood",
    "Mixture",
    "NegativeBinomial",
    "Poisson",
    "Posterior",
    "Prior",
    "StandardNormal",
    "ZeroInflated",
    "locate",
    "start",
]
