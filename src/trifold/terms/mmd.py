"""Maximum mean discrepancy between groups of cells: the functions, from one Gram matrix, and the term."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from trifold.errors import ShapeError, SpecError, TrifoldWarning, suggest
from trifold.records import Pass
from trifold.terms.base import Term

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
        raise ShapeError(f"mmd2 needs two samples of at least two rows and one width; found {tuple(a.shape)} and {tuple(b.shape)}.")
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
    cell = code
    if within is not None:
        cell = torch.where((code < 0) | (within < 0), torch.full_like(code, -1), within * groups + code)
    k = kernel(squared_distances(y), bandwidths)
    member = torch.nn.functional.one_hot(cell + 1, groups * strata + 1)[:, 1:].to(k.dtype)  # [n, strata * groups]
    count = member.sum(0)
    sums = (member.T @ k @ member).reshape(strata, groups, strata, groups).diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # [strata, K, K]
    count = count.reshape(strata, groups)
    own = sums.diagonal(dim1=1, dim2=2)
    mean_own = (own - count) / (count * (count - 1)).clamp_min(1) if unbiased else own / (count * count).clamp_min(1)
    mean_cross = sums / (count[:, :, None] * count[:, None, :]).clamp_min(1)
    present = (count >= 2).to(k.dtype)
    pair = torch.triu(present[:, :, None] * present[:, None, :], diagonal=1)
    value = (pair * (mean_own[:, :, None] + mean_own[:, None, :] - 2 * mean_cross)).sum()
    return value if reduction == "sum" else value / pair.sum().clamp_min(1)


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
                f"The role {role!r} has {groups} categor{'y' if groups == 1 else 'ies'}: there is nothing to match, the MMD term is 0.",
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
