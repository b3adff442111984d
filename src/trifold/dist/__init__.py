"""Distributions that torch lacks, and the exact split of count log-probabilities."""

from trifold.dist.diagonal import diagonal
from trifold.dist.gamma import digamma_difference, lgamma_ratio
from trifold.dist.layer import log_prob_of_features
from trifold.dist.negative_binomial import NegativeBinomial, ZeroInflated, draw_counts, draw_gamma
from trifold.dist.split import nb_log_prob, zinb_log_prob

__all__ = [
    "NegativeBinomial",
    "ZeroInflated",
    "diagonal",
    "digamma_difference",
    "draw_counts",
    "draw_gamma",
    "lgamma_ratio",
    "log_prob_of_features",
    "nb_log_prob",
    "zinb_log_prob",
]
