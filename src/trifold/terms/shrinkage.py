"""Shrinkage of the covariates' own effects towards what all cells share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trifold.errors import SpecError
from trifold.records import Pass
from trifold.terms.base import Term, once

_SMOOTH = 0.03  # a log change below which a norm is rounded off, so that its gradient is finite at 0


class Shrinkage(Term):
    r"""Minus the log prior of what an ``EffectDecoder`` and its likelihood learn per covariate, in nats per training cell.

    .. math:: \frac{1}{n} \Bigl(a \|U\|^2 + b \|\delta\|^2 + s \sum_{jg} \bigl(|\delta_{jg}| + \|U_{jg\cdot}\|\bigr)
              + t \sum_g (\log\theta_g - 1)^2 + u \sum_{jg} (\log\theta_{jg} - \log\theta_g)^2\Bigr)

    with n the number of training cells, j the columns of the design and g the genes. Where z says nothing about the effect, U goes to 0 and
    the effect falls back on the mean effect. The third summand is heavy-tailed: a gene that does not respond gets no effect at all, so that
    differences in composition between conditions stay with z; one that does respond is hardly held back.

    Args:
        local: a, half the precision of the departures U from the mean effect.
        shared: b, half the precision of the mean effects.
        sparse: s, rate of a Laplace prior on each gene's mean effect, and on the norm of its departure.
        typical: t, half the precision of a gene's log inverse dispersion about 1: genes with few counts cannot say it themselves.
        dispersion: u, half the precision of each condition's log inverse dispersion about the gene's own.

    Raises:
        SpecError: A negative argument.
    """

    def __init__(self, *, local: float = 2.0, shared: float = 0.1, sparse: float = 15.0, typical: float = 90.0, dispersion: float = 30.0):
        super().__init__()
        for name, value in (("local", local), ("shared", shared), ("sparse", sparse), ("typical", typical), ("dispersion", dispersion)):
            if value < 0:
                raise SpecError(f"Shrinkage needs {name} >= 0; found {value}.")
        self.local = local
        self.shared = shared
        self.sparse = sparse
        self.typical = typical
        self.dispersion = dispersion

    def forward(self, p: Pass) -> Tensor:
        """[] nats per cell."""
        decoder = p.vae.decoder  # type: ignore[attr-defined]
        sizes = decoder.network.width, decoder.covariates, decoder.rank
        weight = p.vae.likelihood.out.weight
        with torch.autocast(weight.device.type, enabled=False):
            total = _Effects.apply(weight, sizes, (self.local, self.shared, self.sparse))
        theta = getattr(p.vae.likelihood, "theta", None)
        if theta is not None:
            own, departures = theta.distances()
            total = total + self.typical * own + self.dispersion * departures
        return total / p.progress.cells  # type: ignore[no-any-return]


class _Effects(torch.autograd.Function):
    # The three sums over effects in closed form. The first b of the weights' b + c + c * rank columns are the base, without a part here.
    @staticmethod
    def forward(ctx: Any, weight: Tensor, sizes: tuple[int, int, int], rates: tuple[float, float, float]) -> Tensor:
        base, c, rank = sizes
        local, shared, sparse = rates
        mean, departure = weight[:, base : base + c], weight[:, base + c :]
        square = mean * mean
        norm = ((departure * departure).view(len(weight) * c, rank) @ weight.new_ones(rank)).view(-1, c)  # sooner than sum() of short rows
        total = local * norm.sum() + shared * square.sum()
        if sparse:
            roots = [(part + _SMOOTH**2).sqrt_() for part in (square, norm)]
            total += sparse * sum((root - _SMOOTH).sum() for root in roots)
            square, norm = (root.reciprocal_().mul_(sparse) for root in roots)
        else:
            square, norm = square.zero_(), norm.zero_()
        ctx.save_for_backward(weight, square.add_(2 * shared), norm.add_(2 * local))
        ctx.sizes = sizes
        return total

    @staticmethod
    def backward(ctx: Any, *up: Tensor) -> tuple[Tensor, None, None]:
        once("Shrinkage")
        weight, of_mean, of_departure = ctx.saved_tensors
        base, c, rank = ctx.sizes
        out = torch.empty_like(weight)
        out[:, :base] = 0
        torch.mul(weight[:, base : base + c], up[0] * of_mean, out=out[:, base : base + c])
        each = (up[0] * of_departure).view(-1, 1) @ weight.new_ones(1, rank)
        torch.mul(weight[:, base + c :], each.view(len(weight), c * rank), out=out[:, base + c :])
        return out, None, None
