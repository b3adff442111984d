"""A weighted sum of Gaussian kernels between all pairs of rows, with its gradient in closed form: what MMD is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trifold.compiled import compiled
from trifold.terms.base import once


def weighted_kernel(
    y: Tensor,
    cell: Tensor,
    stratum: Tensor | None,
    share: Tensor,
    own: Tensor,
    bandwidths: Sequence[float] | Tensor,
    *,
    unbiased: bool,
) -> Tensor:
    r""":math:`\sum_{ij} w_{ij} k(y_i, y_j)` for weights that add to 0, where k is the mean of Gaussian kernels. Dimensionless.

    Args:
        y: [n, h] rows, float32 or float64.
        cell: [n] group of each row.
        stratum: [n] stratum of each row, or None where there is one; groups lie inside strata.
        share: [n]: two rows of one stratum and of two groups weigh minus the product of their shares.
        own: [n]: two rows of one group weigh so much.
        bandwidths: Variances of the kernels.
        unbiased: A row and itself weigh nothing, rather than as two rows of one group.

    Returns:
        [], with a first derivative in y only.
    """
    return _Weighted.apply(y, cell, stratum, share, own, bandwidths, unbiased)  # type: ignore[no-any-return]


class _Weighted(torch.autograd.Function):
    # The gradient comes with the value, from one exponential per scale: d/dy_i sum w k = 4 sum_j A_ij (y_i - y_j), with A = w dk/dd.
    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        cell: Tensor,
        stratum: Tensor | None,
        share: Tensor,
        own: Tensor,
        bandwidths: Sequence[float] | Tensor,
        unbiased: bool,
    ) -> Tensor:
        y = y - y.mean(0, keepdim=True)  # keeps |a|^2 + |b|^2 - 2ab from cancelling
        rows = cell, stratum, share, own
        if y.device.type == "cpu" and y.dtype == torch.float32 and len(y) > 1 and compiled():
            value, pull, total = _fused(y, *rows, bandwidths, unbiased)
        else:
            value, pull, total = _plain(y, *rows, bandwidths, unbiased)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward((total * y).addmm_(pull, y, alpha=-1).mul_(4))
        return value

    @staticmethod
    def backward(ctx: Any, *up: Tensor) -> tuple[Tensor | None, ...]:
        once("MMD")
        (gradient,) = ctx.saved_tensors
        return up[0] * gradient, None, None, None, None, None, None


def _plain(
    y: Tensor,
    cell: Tensor,
    stratum: Tensor | None,
    share: Tensor,
    own: Tensor,
    bandwidths: Sequence[float] | Tensor,
    unbiased: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """[] sum of w k, [n, n] w dk/dd, and [n, 1] its rows' sums."""
    norm = (y * y).sum(1)
    distance = torch.addmm(norm, y, y.T, alpha=-2).add_(norm[:, None]).clamp_min_(0).fill_diagonal_(0)
    k, slope = on_host(distance, bandwidths) if y.device.type == "cpu" else on_device(distance, bandwidths)
    weight = torch.outer(share, -share)
    if stratum is not None:
        where = stratum.to(y.dtype)  # floats compare several times faster than int64
        weight *= where[:, None] == where
    at = cell.to(y.dtype)
    weight = torch.where(at[:, None] == at, own, weight)
    if unbiased:
        weight.fill_diagonal_(0)
    pull = slope.mul_(weight).mul_(distance > 0)  # equal cells do not pull on each other
    return k.mul_(weight).sum(), pull, pull.sum(1, keepdim=True)


def _fused(
    y: Tensor,
    cell: Tensor,
    stratum: Tensor | None,
    share: Tensor,
    own: Tensor,
    bandwidths: Sequence[float] | Tensor,
    unbiased: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same by compiled kernels."""
    from trifold.compiled import kernels

    gram, total = y @ y.T, torch.empty_like(share)
    distance, code = gram.numpy(), cell.to(torch.int32)
    told = torch.zeros_like(code) if stratum is None else stratum.to(torch.int32)
    low, high = kernels.distances(distance)
    scales = Scales.seen(_numbers(bandwidths), low, high, gram.dtype)
    flat, steps = np.asarray(scales.flat, np.float32), np.asarray(scales.steps, np.float32).reshape(-1, 2)
    diagonal = 0.0 if unbiased else float(scales.constant)
    row = code.numpy(), told.numpy(), share.numpy(), own.numpy()
    value = kernels.weighted(distance, *row, flat, steps, diagonal, total.numpy())
    over = 1 / scales.count
    return y.new_tensor(value * over), gram.mul_(over), total.mul_(over)[:, None]


def on_device(distance: Tensor, bandwidths: Sequence[float] | Tensor) -> tuple[Tensor, Tensor]:
    """[n, n] the kernel and its derivative in the squared distance, all scales, without a look at the numbers."""
    k, slope = torch.zeros_like(distance), torch.zeros_like(distance)
    for bandwidth in bandwidths:
        power = torch.exp(distance * (-0.5 / bandwidth))
        k += power
        slope += power * (-0.5 / bandwidth)
    return k / len(bandwidths), slope / len(bandwidths)


def on_host(distance: Tensor, bandwidths: Sequence[float] | Tensor) -> tuple[Tensor, Tensor]:
    """[n, n] the kernel less a constant and its derivative, only of scales that these distances tell from 0 and 1 (:class:`Scales`)."""
    low, high = _range(distance)
    scales = Scales.seen(_numbers(bandwidths), low, high, distance.dtype)
    k, slope, power = (torch.zeros_like(distance) for _ in range(3))
    if any(scales.flat):
        first, second, third = scales.flat
        torch.mul(distance, third, out=k).add_(second).mul_(distance).add_(first).mul_(distance)
        torch.mul(distance, 3 * third, out=slope).add_(2 * second).mul_(distance).add_(first)
    for scale, added in scales.steps:
        if scale:
            torch.mul(distance, scale, out=power).exp_()
        else:
            power.mul_(power)
        if added:
            k.add_(power)
            slope.add_(power, alpha=added)
    k.diagonal().add_(scales.constant - sum(added != 0 for _, added in scales.steps))
    return k.div_(scales.count), slope.div_(scales.count)


@dataclass(frozen=True)
class Scales:
    r"""What is evaluated of a mean of Gaussian kernels :math:`\exp(s d)`, given the range of the distances.

    A scale on which all kernels are near 1 is flat: three terms of its series are exact to rounding, and the series of all flat scales is
    one, without its constant. One on which all are 0 is left out. Where a scale is two or four times another, its exponential is the
    square of that.

    Attributes:
        flat: Coefficients of d, d², d³ in the sum over flat scales.
        steps: (s, t): e = exp(s d), or, if s is 0, e = e e; e is then exp(t d) and counts, unless t is 0.
        constant: Number of scales that count on the diagonal: all but the flat ones.
        count: Number of all scales.
    """

    flat: tuple[float, float, float]
    steps: tuple[tuple[float, float], ...]
    constant: int
    count: int

    @staticmethod
    def seen(bandwidths: Sequence[float], low: float, high: float, dtype: torch.dtype) -> Scales:
        """The plan for distances between ``low`` and ``high`` off the diagonal; if these are NaN, all scales are evaluated."""
        kind = torch.finfo(dtype)
        scales = sorted((-0.5 / b for b in bandwidths), reverse=True)
        flat = [s for s in scales if -s * high < kind.eps ** (1 / 3)]
        left = [s for s in scales[len(flat) :] if not -s * low > -math.log(kind.tiny)]
        steps: list[tuple[float, float]] = []
        while left:
            s = left.pop(0)
            steps.append((s, s))
            while 2 * s in left or 4 * s in left:
                s = 2 * s
                steps.append((0.0, s if s in left else 0.0))
                if s in left:
                    left.remove(s)
        first, second, third = (sum(s**power for s in flat) / math.factorial(power) for power in (1, 2, 3))
        return Scales((first, second, third), tuple(steps), len(scales) - len(flat), len(scales))


def _numbers(bandwidths: Sequence[float] | Tensor) -> Sequence[float]:
    return bandwidths.tolist() if isinstance(bandwidths, Tensor) else bandwidths


def _range(distance: Tensor) -> tuple[float, float]:
    """Smallest and largest number off the diagonal."""
    if len(distance) < 2:
        return 0.0, 0.0
    low, high = torch.aminmax(distance.flatten()[1:].view(len(distance) - 1, -1)[:, :-1])  # the diagonal ends each row
    return float(low), float(high)
