"""Total correlation between two blocks of the latent, from the posteriors of a minibatch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution

from trifold.errors import ShapeError
from trifold.records import Pass
from trifold.terms.base import Term
from trifold.terms.blocks import marginal, sample


def density(z: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """[n, n] log N(z_i; mean_j, diag scale_j²) in nats, from [n, k] each, without a tensor of n n k numbers."""
    centre = mean.mean(0).detach()  # keeps the square from cancelling
    z, mean = z - centre, mean - centre
    precision = scale.reciprocal().square()
    square = (z * z) @ precision.T - 2 * z @ (mean * precision).T + (mean * mean * precision).sum(1)
    return -0.5 * (square.clamp_min(0) + 2 * scale.log().sum(1) + z.shape[1] * math.log(2 * math.pi))


def total_correlation(a: Tensor, b: Tensor, *, centred: bool = True, order: Tensor | None = None) -> Tensor:
    r"""Mutual information of two blocks under the aggregated posterior, estimated from a minibatch. Nats.

    .. math:: \frac1n \sum_i \log \sum_j A_{ij} B_{ij} - \frac1n \sum_i \log \sum_j A_{ij} B_{\pi i, \pi j}

    with :math:`A_{ij} = q(z^a_i \mid x_j)`, B likewise, and π a random cycle that gives each cell the second block of another. The
    marginal terms of the two are the same and cancel. Uncentred, the second sum is
    :math:`\frac1n \sum_i (\log \sum_j A_{ij} + \log \sum_j B_{ij}) - \log n`.

    Bias: the centred form is 0 in expectation when the blocks are independent, whatever the posteriors. On dependent blocks it is too
    small where posteriors are narrow against the distance between cells, and goes to 0 in the limit; the uncentred form then goes to
    log n, dependent or not. Both are right where posteriors overlap.

    Args:
        a, b: [n, n] log densities of each cell's block i under each cell's posterior j (:func:`density`).
        centred: False: the published estimate, less its constant.
        order: [n] a permutation; None: a random cycle.

    Returns:
        [] nats; 0 for fewer than two cells.

    Raises:
        ShapeError: Two matrices of different shape.

    Source: Chen et al., NeurIPS 2018 (minibatch weighted sampling), block by block as in Aliee et al. 2023; the centring is ours.
    """
    n = len(a)
    if a.shape != b.shape or a.shape != (n, n):
        raise ShapeError(
            f"total_correlation needs two square matrices of one shape; found {tuple(a.shape)} and {tuple(b.shape)}. "
            "Pass kernels of the same cells."
        )
    if n < 2:
        return 0 * (a.sum() + b.sum())
    together = (a + b).logsumexp(1)
    if not centred:
        return (together - a.logsumexp(1) - b.logsumexp(1)).mean() + math.log(n)
    if order is None:
        shuffled = torch.randperm(n, device=a.device)
        order = torch.empty_like(shuffled).scatter_(0, shuffled, shuffled.roll(1))
    return (together - (a + b[order][:, order]).logsumexp(1)).mean()


class TotalCorrelation(Term):
    """Mutual information of two blocks under the aggregated posterior, nats; an estimate that is below 0 by chance.

    Args:
        block: Name of the block that is to be independent.
        other: Name of the block that it is to be independent of.
        one_sided: The gradient goes to ``block`` only; else a penalty can be met by emptying ``other``.
        centred: Subtract the estimate for blocks of different cells; False: as published (:func:`total_correlation` says how they err).

    Source: Aliee et al. 2023; Chen et al. 2018. Theirs is two-sided, uncentred and off by log N.
    """

    joint = True

    def __init__(self, block: str = "invariant", other: str = "spurious", *, one_sided: bool = True, centred: bool = True):
        super().__init__()
        self.block = block
        self.other = other
        self.one_sided = one_sided
        self.centred = centred

    def forward(self, p: Pass) -> Tensor:
        """[] nats."""
        with torch.autocast(p.z.device.type, enabled=False):
            a = _densities(sample(p, self.block), marginal(p, self.block))
            b = _densities(sample(p, self.other), marginal(p, self.other))
            return total_correlation(a, b.detach() if self.one_sided else b, centred=self.centred)


def _densities(z: Tensor, q: Distribution) -> Tensor:
    return density(z, q.mean.to(z.dtype), q.stddev.to(z.dtype))
