"""``Isometry``: latent distances should be lengths in data space, up to one scale."""

from __future__ import annotations

from torch import Tensor

from trifold.errors import SpecError
from trifold.geometry import metric
from trifold.geometry.surface import full
from trifold.records import Pass
from trifold.terms.base import Term
from trifold.terms.points import places


class Isometry(Term):
    r"""Relaxed distortion of the decoder. Dimensionless, 0 iff the metric is one multiple of the identity everywhere.

    .. math:: d \, \frac{\overline{\mathrm{tr}\, g^2}}{\overline{\mathrm{tr}\, g}^2} - 1

    with g the metric at the points of :class:`Curvature`, means over points. Only the decoder and the likelihood's last layer get a
    gradient. Computed in float32 whatever the autocast.

    Args:
        points: Points per step at most.

    Raises:
        SpecError: Fewer than two points.

    Source: Lee, Yoon, Son and Park, ICLR 2022 (isometric representation learning), eq. 10, less its smallest value and divided by it.
    """

    joint = True

    def __init__(self, *, points: int = 64):
        super().__init__()
        if points < 2:
            raise SpecError(f"Isometry needs points >= 2; found {points}.")
        self.points = points

    def forward(self, p: Pass) -> Tensor:
        """[] dimensionless."""
        with full(p.z):
            z, surface, _ = places(p, self.points)
            g = metric(surface, z)
            trace = g.diagonal(dim1=1, dim2=2).sum(1).mean().clamp_min(1e-30)  # a collapsed surface is not distorted
            return (g.shape[1] * (g / trace).square().sum((1, 2)).mean() - 1).clamp_min(0)
