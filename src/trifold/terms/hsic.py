"""Hilbert-Schmidt independence criterion between two blocks of the latent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trifold.errors import ShapeError, SpecError
from trifold.records import Pass
from trifold.terms.base import Term
from trifold.terms.blocks import category, sample
from trifold.terms.mmd import around_median, kernel, squared_distances


def hsic(k: Tensor, l: Tensor, *, within: Tensor | None = None, strata: int = 1) -> Tensor:  # noqa: E741
    r"""Unbiased Hilbert-Schmidt independence criterion from two kernel matrices. Dimensionless.

    .. math:: \frac{1}{m(m-3)} \Bigl( \mathrm{tr}\,KL + \frac{1^\top K 1 \; 1^\top L 1}{(m-1)(m-2)} - \frac{2}{m-2} 1^\top K L 1 \Bigr)

    with the diagonals of K and L set to 0. Its expectation is 0 when the blocks are independent, the true value in any case.

    Args:
        k, l: [n, n] kernels between the cells' first and second block.
        within: [n] stratum of each cell, 0 to strata - 1; -1 is left out. None: all cells are one stratum.
        strata: Number of strata.

    Returns:
        [] the mean over strata of at least four cells, weighted by their cells; 0 without any.

    Raises:
        ShapeError: Two matrices of different shape.

    Source: Song et al., JMLR 13 (2012), eq. 5.
    """
    if k.shape != l.shape or k.dim() != 2:
        raise ShapeError(
            f"hsic needs two square matrices of one shape; found {tuple(k.shape)} and {tuple(l.shape)}. Pass kernels of the same cells."
        )
    stratum = torch.zeros(len(k), dtype=torch.int64, device=k.device) if within is None else within
    member = torch.nn.functional.one_hot(stratum + 1, strata + 1)[:, 1:].to(k.dtype)  # [n, strata]
    off = 1 - torch.eye(len(k), dtype=k.dtype, device=k.device)
    k, l = k * off, l * off  # noqa: E741
    m = member.sum(0)
    left, right = k @ member, l @ member
    trace = (member * ((k * l) @ member)).sum(0)
    sums = (member * left).sum(0) * (member * right).sum(0)
    cross = (member * left * right).sum(0)
    value = (trace + sums / ((m - 1) * (m - 2)).clamp_min(1) - 2 * cross / (m - 2).clamp_min(1)) / (m * (m - 3)).clamp_min(1)
    weight = m * (m >= 4)
    return (weight * value).sum() / weight.sum().clamp_min(1)


class HSIC(Term):
    """Hilbert-Schmidt independence criterion between two blocks, with Gaussian kernels. Dimensionless; below 0 by chance.

    It is 0 in expectation exactly when the blocks are independent. A value of 0.1 is already strong dependence: weights are large.

    Args:
        block: Name of the block that is to be independent.
        other: Name of the block that it is to be independent of.
        within: Role inside whose categories they are to be independent, or None: where the two roles are confounded, only that is right.
        strata: Number of joint categories of ``within``.
        one_sided: The gradient goes to ``block`` only; else a penalty can be met by emptying ``other``.
        bandwidths: Variances of the kernels in squared latent units, for both; None: five around each block's median squared distance.

    Raises:
        SpecError: No bandwidth, or one that is not above 0.

    Source: Gretton et al., ALT 2005; Song et al. 2012 (unbiased).
    """

    joint = True

    def __init__(
        self,
        block: str = "invariant",
        other: str = "spurious",
        *,
        within: str | None = None,
        strata: int = 1,
        one_sided: bool = True,
        bandwidths: Sequence[float] | None = None,
    ):
        super().__init__()
        if bandwidths is not None and (not bandwidths or min(bandwidths) <= 0):
            raise SpecError(f"HSIC needs bandwidths above zero, or None for those of the data; found {list(bandwidths)}.")
        self.block = block
        self.other = other
        self.within = within
        self.strata = strata
        self.one_sided = one_sided
        self.bandwidths = None if bandwidths is None else tuple(bandwidths)

    def forward(self, p: Pass) -> Tensor:
        """[] dimensionless."""
        with torch.autocast(p.z.device.type, enabled=False):
            a, b = sample(p, self.block), sample(p, self.other)
            within = None if self.within is None else category(p, self.within)
            return hsic(self._kernel(a), self._kernel(b.detach() if self.one_sided else b), within=within, strata=self.strata)

    def _kernel(self, y: Tensor) -> Tensor:
        return kernel(squared_distances(y), around_median(y) if self.bandwidths is None else self.bandwidths)
