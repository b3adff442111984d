"""Maximum mean discrepancy between groups of cells: the functions, from one Gram matrix, and the term."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from trifold.errors import ShapeError, SpecError, TrifoldWarning, suggest
from trifold.records import Pass
from trifold.terms.base import Term
from trifold.terms.weighted_kernel import weighted_kernel

PUBLISHED_BANDWIDTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1, 5, 10, 15, 20, 25, 30, 35, 100, 1e3, 1e4, 1e5, 1e6)
_AROUND_MEDIAN = (0.25, 0.5, 1.0, 2.0, 4.0)
_SOME = 256  # rows from which a median distance is taken


def squared_distances(y: Tensor) -> Tensor:
    """[n, n] squared Euclidean distances between the rows of y [n, h], with a diagonal of exact zeros, in float32 or better."""
    y = y.float() if y.dtype in (torch.float16, torch.bfloat16) else y
    y = y - y.mean(0, keepdim=True).detach()  # keeps |a|^2 + |b|^2 - 2ab from cancelling
    norm = (y * y).sum(1)
    distance = (norm[:, None] + norm[None, :] - 2 * (y @ y.T)).clamp_min(0)
    off = 1 - torch.eye(len(y), dtype=y.dtype, device=y.device)
    return distance * off


def kernel(distance: Tensor, bandwidths: Sequence[float] | Tensor) -> Tensor:
    r"""Mean of Gaussian kernels, :math:`k = \frac1B \sum_b \exp(-d^2 / 2\sigma_b)`.

    Args:
        distance: Squared distances, any shape.
        bandwidths: Variances :math:`\sigma_b` in squared units of the samples.

    Returns:
        Values in [0, 1], of the shape of ``distance``.
    """
    scales = [-0.5 / b for b in bandwidths]
    total = torch.exp(distance * scales[0])
    for scale in scales[1:]:
        total = total + torch.exp(distance * scale)
    return total / len(scales)


def mmd2(a: Tensor, b: Tensor, bandwidths: Sequence[float] | Tensor, *, unbiased: bool = True) -> Tensor:
    r"""Squared maximum mean discrepancy between two samples. Dimensionless.

    .. math:: \frac{1}{n(n-1)}\sum_{i\ne j} k(a_i,a_j) + \frac{1}{m(m-1)}\sum_{i\ne j} k(b_i,b_j) - \frac{2}{nm}\sum_{ij} k(a_i,b_j)

    Args:
        a, b: The samples, [n, h] and [m, h]. At least two rows on either side.
        bandwidths: Variances of the Gaussian kernels; k is their mean.
        unbiased: False: the V-statistic, which keeps the diagonal and is never negative.

    Returns:
        [] the estimate; the unbiased one is below zero when the samples are closer than chance.

    Raises:
        ShapeError: A sample has fewer than two rows, or the widths differ.

    Source: Gretton et al., JMLR 13 (2012), eq. 3 and 5. The trVAE paper uses the V-statistic: ``trvae(..., published=True)``.
    """
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ShapeError(f"mmd2 needs two samples of at least two rows, of the same width; found {tuple(a.shape)} and {tuple(b.shape)}.")
    code = torch.cat([torch.zeros(len(a), dtype=torch.int64), torch.ones(len(b), dtype=torch.int64)]).to(a.device)
    return mmd2_groups(torch.cat([a, b]), code, bandwidths, groups=2, unbiased=unbiased)


def mmd2_groups(
    y: Tensor,
    code: Tensor,
    bandwidths: Sequence[float] | Tensor,
    *,
    groups: int,
    unbiased: bool = True,
    reduction: str = "mean",
    within: Tensor | None = None,
    strata: int = 1,
) -> Tensor:
    r"""Squared MMD over all pairs of groups, from one Gram matrix. Dimensionless.

    With :math:`M_{ij}` the mean of the kernel between groups i and j, :math:`\mathrm{MMD}^2_{ij} = M_{ii} + M_{jj} - 2 M_{ij}`; no loop
    over pairs. Groups with fewer than two cells are left out; with fewer than two groups the value is 0.

    Args:
        y: [n, h] samples.
        code: [n] group of each row, 0 to groups - 1; -1 is left out.
        bandwidths: Variances of the Gaussian kernels.
        groups: Number of groups K.
        unbiased: Leave the diagonal out of :math:`M_{ii}`.
        reduction: ``"mean"`` over the pairs that are present, or ``"sum"`` as published.
        within: [n] stratum of each row, 0 to strata - 1, or -1: only pairs of groups within a stratum are compared.
        strata: Number of strata.

    Returns:
        [] the mean (or sum) over pairs.

    Source: Lotfollahi et al. 2020, eq. 9 (sum over pairs, V-statistic).
    """
    if reduction not in ("mean", "sum"):
        raise SpecError(f"reduction needs 'mean' or 'sum'; found {reduction!r}.{suggest(reduction, ('mean', 'sum'))}")
    cell, inside = code, None
    if within is not None:
        cell = torch.where((code < 0) | (within < 0), -1, within * groups + code)
        inside = within if strata > 1 else None
    y = y.float() if y.dtype in (torch.float16, torch.bfloat16) else y
    share, own = row_weights(cell, groups=groups, strata=strata, unbiased=unbiased, reduction=reduction, dtype=y.dtype)
    return weighted_kernel(y, cell, inside, share, own, bandwidths, unbiased=unbiased)


def row_weights(cell: Tensor, *, groups: int, strata: int, unbiased: bool, reduction: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    r"""What makes the weights w of :math:`\mathrm{MMD}^2 = \sum_{ij} w_{ij} k(y_i, y_j)`, over all pairs of groups at once. Dimensionless.

    With :math:`n_a` cells in group a and :math:`p_a` groups that it is compared with, a pair of two groups weighs
    :math:`-1 / n_a n_b`, a pair inside one :math:`p_a / n_a (n_a - 1)`, or :math:`p_a / n_a^2` with the diagonal. The weights add to 0.

    Args:
        cell: [n] stratum * groups + group of each row; -1 is left out.
        groups, strata: Their numbers.
        unbiased: Without the diagonal.
        reduction: ``"mean"`` over the pairs of groups, or ``"sum"``.
        dtype: Of the result.

    Returns:
        [n] share, where two rows of two groups weigh minus the product, and [n] weight of a pair inside the row's group.
    """
    count = torch.zeros(strata * groups + 1, dtype=dtype, device=cell.device)
    count = count.index_add_(0, cell + 1, torch.ones_like(cell, dtype=dtype))[1:].view(strata, groups)
    present = (count >= 2).to(dtype)
    others = present.sum(1, keepdim=True) - 1
    own = present * others / (count * (count - 1 if unbiased else count)).clamp_min(1)
    share = present / count.clamp_min(1)
    if reduction == "mean":
        pairs = (0.5 * (others + 1) * others).sum().clamp_min(1)
        share, own = share / pairs.sqrt(), own / pairs
    table = torch.nn.functional.pad(torch.stack([share.view(-1), own.view(-1)]), (1, 0))  # the first column is of rows that are left out
    share, own = table[:, cell + 1]
    return share, own


def around_median(y: Tensor) -> Tensor:
    """[5] bandwidths around half the median squared distance of the rows of y [n, h], in squared units of y; no gradient."""
    median = _median_squared(y.detach(), y.new_zeros(()))
    return 0.5 * torch.where(median > 0, median, torch.ones_like(median)) * y.new_tensor(_AROUND_MEDIAN)


def _median_squared(y: Tensor, otherwise: Tensor) -> Tensor:
    """[] median squared distance between some rows of y, or ``otherwise`` where there is one row only."""
    some = y[:_SOME]
    return torch.median(torch.pdist(some)).square() if len(some) > 1 else otherwise


class MMD(Term):
    """Squared MMD between the conditions' activations in a decoder layer. Dimensionless.

    Args:
        tap: Name of the activations in ``Pass.taps``: ``"decoder.0"`` is the first decoder layer; ``"z"`` is the latent.
        role: Role of the schema whose joint categories are matched.
        groups: Number of joint categories of the role.
        within: Role inside whose categories the conditions are matched, or None: where proportions of cell types differ between conditions,
            equal marginals would be wrong.
        strata: Number of joint categories of ``within``.
        bandwidths: Variances of the Gaussian kernels, or None: five around the running median squared distance.
        unbiased: False: the published V-statistic.
        reduction: ``"mean"`` over pairs of conditions, or ``"sum"`` as published.

    Raises:
        SpecError: An unknown reduction, or no bandwidth.

    Source: Lotfollahi et al. 2020, section 3. Deviations: docs/deviations.md.
    """

    joint = True

    def __init__(
        self,
        *,
        tap: str = "decoder.0",
        role: str = "condition",
        groups: int,
        within: str | None = None,
        strata: int = 1,
        bandwidths: Sequence[float] | None = None,
        unbiased: bool = True,
        reduction: str = "mean",
    ):
        super().__init__()
        if reduction not in ("mean", "sum"):
            raise SpecError(f"reduction needs 'mean' or 'sum'; found {reduction!r}.{suggest(reduction, ('mean', 'sum'))}")
        if bandwidths is not None and (not bandwidths or min(bandwidths) <= 0):
            raise SpecError(f"MMD needs bandwidths above zero, or None for those of the data; found {list(bandwidths)}.")
        self.tap = tap
        self.role = role
        self.groups = groups
        self.within = within
        self.strata = strata
        self.bandwidths = None if bandwidths is None else tuple(bandwidths)
        self.unbiased = unbiased
        self.reduction = reduction
        self.register_buffer("median", torch.zeros(()))
        if groups < 2:
            warnings.warn(
                f"The role {role!r} has {groups} categor{'y' if groups == 1 else 'ies'}: there is nothing to match, the MMD term is 0. "
                f"Train on cells of two or more to have them matched.",
                TrifoldWarning,
                stacklevel=2,
            )

    def forward(self, p: Pass) -> Tensor:
        """[] the mean (or sum) over pairs of conditions."""
        y = p.z if self.tap == "z" else self._tapped(p)
        if self.groups < 2:
            return y.new_zeros(())
        with torch.autocast(y.device.type, enabled=False):
            return mmd2_groups(
                y.float(),
                p.batch.code[self.role],
                self._bandwidths(y.detach().float()),
                groups=self.groups,
                unbiased=self.unbiased,
                reduction=self.reduction,
                within=None if self.within is None else p.batch.code[self.within],
                strata=self.strata,
            )

    def _tapped(self, p: Pass) -> Tensor:
        if self.tap not in p.taps:
            raise SpecError(f"The decoder leaves no tap {self.tap!r}.{suggest(self.tap, p.taps)} It leaves: {', '.join(p.taps)}.")
        return p.taps[self.tap]

    def _bandwidths(self, y: Tensor) -> Sequence[float] | Tensor:
        if self.bandwidths is not None:
            return self.bandwidths
        median = self.get_buffer("median")
        if self.training:
            now = _median_squared(y, median)
            mixed = torch.where(median > 0, 0.95 * median + 0.05 * now, now)
            self.median = torch.where(torch.isfinite(mixed), mixed, median)
            median = self.median
        base = 0.5 * torch.where(median > 0, median, torch.ones_like(median))
        return torch.stack([base * factor for factor in _AROUND_MEDIAN]).clamp_min(1e-12)
