"""MMD of one block across the categories of one role, within the categories of another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trifold.errors import SpecError
from trifold.records import Pass
from trifold.terms.base import Term
from trifold.terms.blocks import category, sample
from trifold.terms.mmd import around_median, mmd2_groups


class ConditionalMMD(Term):
    """Squared MMD of a block across the categories of a role, within the categories of another: 0 when the block is independent of the
    first given the second. Dimensionless; below 0 by chance.

    The mean over pairs of groups of at least two cells that meet inside a category; nothing is compared across categories, so that
    proportions may differ. The cost does not depend on how many categories there are, only on those in the minibatch.

    Args:
        block: Name of the block.
        role: Role whose categories are to be indistinguishable.
        within: Role inside whose categories they are compared; None: over all cells.
        bandwidths: Variances of the Gaussian kernels in squared latent units; None: five around the median squared distance.

    Raises:
        SpecError: No bandwidth, or one that is not above 0.

    Source: Gretton et al., JMLR 13 (2012), eq. 3.
    """

    joint = True

    def __init__(
        self,
        block: str = "invariant",
        *,
        role: str = "spurious",
        within: str | None = "invariant",
        bandwidths: Sequence[float] | None = None,
    ):
        super().__init__()
        if bandwidths is not None and (not bandwidths or min(bandwidths) <= 0):
            raise SpecError(f"ConditionalMMD needs bandwidths above zero, or None for those of the data; found {list(bandwidths)}.")
        self.block = block
        self.role = role
        self.within = within
        self.bandwidths = None if bandwidths is None else tuple(bandwidths)

    def forward(self, p: Pass) -> Tensor:
        """[] the mean over pairs."""
        with torch.autocast(p.z.device.type, enabled=False):
            y, code = sample(p, self.block), category(p, self.role)
            stratum = torch.zeros_like(code) if self.within is None else category(p, self.within)
            group, stratum, groups, strata = compact(code, stratum)
            if groups < 2:
                return 0 * y.sum()
            bandwidths = around_median(y) if self.bandwidths is None else self.bandwidths
            return mmd2_groups(y, group, bandwidths, groups=groups, within=stratum, strata=strata)


def compact(code: Tensor, stratum: Tensor) -> tuple[Tensor, Tensor, int, int]:
    """Groups and strata numbered anew, each stratum's groups from 0, so that only those of two cells or more take room.

    Args:
        code, stratum: [n] int64, -1 unknown.

    Returns:
        [n] group and [n] stratum, -1 where unknown or alone; number of groups of the richest stratum, number of strata.
    """
    alone = torch.full_like(code, -1)
    known = (code >= 0) & (stratum >= 0)
    base = int(code.max()) + 1 if len(code) else 1
    pair, cell, count = torch.unique(torch.where(known, stratum * base + code, alone), return_inverse=True, return_counts=True)
    kept = (pair >= 0) & (count >= 2)
    if not kept.any():
        return alone, alone, 0, 0
    _, at, sizes = torch.unique(pair[kept] // base, return_inverse=True, return_counts=True)
    rank = torch.arange(len(at), device=at.device) - (sizes.cumsum(0) - sizes)[at]
    new_group, new_stratum = torch.full_like(pair, -1), torch.full_like(pair, -1)
    new_group[kept], new_stratum[kept] = rank, at
    return new_group[cell], new_stratum[cell], int(sizes.max()), len(sizes)
