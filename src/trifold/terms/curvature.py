"""``Curvature``: a decoder's surface should be flat, and its latent grid even."""

from __future__ import annotations

from torch import Tensor

from trifold.errors import SpecError
from trifold.geometry import curvature
from trifold.geometry.surface import full
from trifold.records import Pass
from trifold.terms.base import Term
from trifold.terms.points import places


class Curvature(Term):
    r"""Mean curvature of the decoder's surface, times the squared radius of the data. Dimensionless.

    .. math:: R^2 \left( a\,\overline{E} + b\,\overline{P} \right)

    over latents of cells, mixtures of them and points a little beyond, with E and P the extrinsic and the parameter-effects curvature
    (:func:`trifold.geometry.curvature`) and R² the mean squared distance of the decoded points to their centroid. Only the decoder and the
    likelihood's last layer get a gradient. Computed in float32 whatever the autocast.

    Args:
        extrinsic: a, weight of what bends the surface.
        parameter: b, weight of what bends the latent grid.
        points: Points per step at most.
        directions: Pairs of random directions per point above 6 latent dimensions.
        ridge: Share of the metric's mean diagonal that is added before inverting, so that a direction that does nothing costs nothing.

    Raises:
        SpecError: A weight below zero, or a number that makes no sense. At the first step: an activation with a kink, or BatchNorm.

    Source: Kim et al., arXiv 2403.01078 (2024). The paper's own weights are not known to us.
    """

    joint = True

    def __init__(self, *, extrinsic: float = 1.0, parameter: float = 1.0, points: int = 64, directions: int = 1, ridge: float = 1e-3):
        super().__init__()
        least = {"extrinsic": (extrinsic, 0), "parameter": (parameter, 0), "points": (points, 2), "directions": (directions, 1)}
        for name, (value, bound) in least.items():
            if not value >= bound:
                raise SpecError(f"Curvature needs {name} >= {bound}; found {value}.")
        if not ridge > 0:
            raise SpecError(f"Curvature needs ridge above 0; found {ridge}.")
        self.extrinsic = extrinsic
        self.parameter = parameter
        self.points = points
        self.directions = directions
        self.ridge = ridge

    def forward(self, p: Pass) -> Tensor:
        """[] dimensionless."""
        with full(p.z):
            z, surface, square = places(p, self.points)
            bent = curvature(surface, z, directions=self.directions, ridge=self.ridge)
            return square * (self.extrinsic * bent.extrinsic.mean() + self.parameter * bent.parameter.mean())
