"""The metric that a decoder pulls back to the latent, its Christoffel symbols, and coordinates in which it is the identity on average."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trifold.geometry.jets import local
from trifold.geometry.surface import full, inner, points_of, surface_of


def metric(f: Any, z: Tensor) -> Tensor:
    r"""[n, d, d] :math:`g_{\mu\nu} = h_\mu \cdot h_\nu`, in length² of data space per latent unit².

    Args:
        f: A surface, or any callable [n, d] -> [n, g] that maps rows on their own.
        z: [n, d] latent points.

    Raises:
        ShapeError: z is not [n, d].
    """
    surface, z = surface_of(f), points_of(z)
    with full(z):
        slope = local(surface, z).slope
        return metric_of(slope, inner(slope, surface.gram))


def christoffel(f: Any, z: Tensor, *, ridge: float | None = None) -> Tensor:
    r"""[n, d, d, d] Christoffel symbols :math:`\Gamma^\kappa_{\mu\nu}`, the first axis :math:`\kappa`. In 1/latent unit.

    Args:
        f: A surface, or any callable [n, d] -> [n, g] that maps rows on their own.
        z: [n, d] latent points.
        ridge: As in :func:`trifold.geometry.curvature`.

    Raises:
        ShapeError: z is not [n, d].
        SpecError: An activation with a kink, or BatchNorm in training mode.
    """
    surface, z = surface_of(f), points_of(z)
    surface.require_smooth()
    d = z.shape[1]
    with full(z):
        here = local(surface, z)
        pulled = inner(here.slope, surface.gram)
        inverse = frame_of(metric_of(here.slope, pulled), ridge)
        left, right = torch.cartesian_prod(*[torch.arange(d, device=z.device)] * 2).T
        basis = torch.eye(d, dtype=z.dtype, device=z.device).expand(len(z), d, d)
        lower = here.bend(basis, left, right) @ pulled.transpose(1, 2)  # [n, d * d, d]
        upper = lower @ (inverse.transpose(1, 2) @ inverse)
        return upper.transpose(1, 2).unflatten(2, (d, d))


def rectifier(metrics: Tensor) -> Tensor:
    r"""[d, d] matrix R of the coordinates z R in which the mean metric is the identity: distances there are lengths in data space.

    Where the metric is constant the distances are exact. R is the lower Cholesky factor of the mean metric.

    Args:
        metrics: [n, d, d].
    """
    share = 10 * metrics.shape[1] * torch.finfo(metrics.dtype).eps
    return factor_of(metrics.double().mean(0, keepdim=True), share)[0].to(metrics.dtype)


def metric_of(slope: Tensor, pulled: Tensor) -> Tensor:
    """[n, d, d] from tangents [n, d, h] and the same with the Gram matrix applied."""
    product = pulled @ slope.transpose(1, 2)
    return 0.5 * (product + product.transpose(1, 2))


def frame_of(metric: Tensor, ridge: float | None) -> Tensor:
    """[n, d, d] whose rows, as combinations of the latent grid's tangents, are orthonormal in data space."""
    factor = factor_of(metric, ridge)
    return torch.linalg.solve_triangular(factor, torch.eye(metric.shape[1], dtype=metric.dtype, device=metric.device), upper=False)


def factor_of(metric: Tensor, ridge: float | None) -> Tensor:
    """[n, d, d] lower Cholesky factors of metrics with a share of their mean diagonal added.

    Where rounding leaves a metric without full rank not positive even so, its share is raised by hundreds until it is. A share far above
    rounding, as in training, needs no such look, which on a device would cost a synchronisation. A collapsed surface gets a tiny constant,
    so that nothing is divided by zero.
    """
    d = metric.shape[1]
    least = 10 * d * torch.finfo(metric.dtype).eps if ridge is None else ridge
    share, safe = metric.new_full((len(metric),), least), min(1.0, 100 * d * torch.finfo(metric.dtype).eps)
    mean, unit = metric.diagonal(dim1=1, dim2=2).mean(1), torch.eye(d, dtype=metric.dtype, device=metric.device)
    while True:
        added = share * mean + torch.finfo(metric.dtype).tiny ** 0.25
        factor, failed = torch.linalg.cholesky_ex(metric + added[:, None, None] * unit)
        if least >= safe or not bool(failed.any()):
            return factor
        least *= 100
        share = torch.where(failed > 0, 100 * share, share)
