"""Curvature of the surface that a decoder spans, split into what bends the surface and what bends the coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trifold.errors import SpecError, suggest
from trifold.geometry.jets import local
from trifold.geometry.metric import frame_of, metric_of
from trifold.geometry.surface import full, inner, points_of, surface_of

ROUTES = ("auto", "jets", "func", "random")
_EXACT = 6  # latent dimensions up to which all pairs of directions are cheaper than an estimate is noisy


@dataclass(frozen=True)
class Curvature:
    """Curvature at points.

    Args:
        extrinsic: [n] how fast the tangent space turns, in 1/length² of data space. 0 where the surface is flat; the same in any latent
            coordinates.
        parameter: [n] how fast the latent grid stretches and shears, in 1/length² of data space. 0 where the metric is constant; the same
            in any affine latent coordinates.
        metric: [n, d, d] inner products of the latent grid's tangents, in length² of data space per latent unit².
    """

    extrinsic: Tensor
    parameter: Tensor
    metric: Tensor


def curvature(
    f: Any,
    z: Tensor,
    *,
    route: str = "auto",
    directions: int = 8,
    ridge: float | None = None,
    generator: torch.Generator | None = None,
) -> Curvature:
    r"""Extrinsic and parameter-effects curvature of a decoder's surface. Both in 1/length², with length in data space.

    .. math:: E = g^{\mu\alpha} g^{\nu\beta} (h_{\mu\nu} \cdot h_{\alpha\beta} - \Gamma^\kappa_{\mu\nu}
              \Gamma^\lambda_{\alpha\beta} g_{\kappa\lambda}), \qquad P = g^{\mu\alpha} g^{\nu\beta} \Gamma^\kappa_{\mu\nu}
              \Gamma^\lambda_{\alpha\beta} g_{\kappa\lambda}

    with :math:`h_\mu, h_{\mu\nu}` derivatives of the map, g the metric and :math:`\Gamma` its Christoffel symbols: the squared norms of
    the normal and the tangential part of the second derivatives, in an orthonormal frame. A sphere of radius r in any coordinates has
    E = 2/r², a cylinder 1/r². Multiply by the mean squared distance of the data to their centroid for a number without units.

    Args:
        f: A decoder's surface (``model.surface()``), or any callable [n, d] -> [n, g] that maps rows on their own.
        z: [n, d] latent points.
        route: ``"jets"``: exact, in closed form through the layers of a perceptron without normalisation; ``"func"``: exact, by nested
            forward-mode differentiation; ``"random"``: unbiased, from pairs of independent random directions; ``"auto"``: exact up to 6
            latent dimensions and random above, in closed form where there is one.
        directions: Pairs of directions per point of the random route. The standard error falls as their root.
        ridge: Share of the metric's mean diagonal that is added before inverting; None: 10 d times the precision of the numbers. Raised
            at points where the metric is not positive even so.
        generator: Where random directions come from; None: torch's own.

    Returns:
        Curvature at each point. Gradients flow through all of it, random directions included.

    Raises:
        ShapeError: z is not [n, d].
        SpecError: An unknown route, an activation with a kink, BatchNorm in training mode, or ``"jets"`` where there is no closed form.

    Source: Bates and Watts, J. R. Stat. Soc. B 42 (1980); Kim et al., arXiv 2403.01078 (2024).
    """
    surface = surface_of(f)
    z = points_of(z)
    if route not in ROUTES:
        raise SpecError(f"route needs one of {', '.join(map(repr, ROUTES))}; found {route!r}.{suggest(route, ROUTES)}")
    if route == "jets" and surface.chain is None:
        raise SpecError(
            "route='jets' needs a perceptron with norm='none', a hidden layer and a smooth activation; this map has no such form. "
            "Pass route='func', or 'auto'."
        )
    if directions < 1:
        raise SpecError(f"curvature needs directions >= 1; found {directions}.")
    surface.require_smooth()
    random = route == "random" or (route == "auto" and z.shape[1] > _EXACT)
    with full(z):
        here = local(surface, z, closed=False if route == "func" else None)
        gram = surface.gram
        pulled = inner(here.slope, gram)
        metric = metric_of(here.slope, pulled)
        inverse = frame_of(metric, ridge)
        if random:
            noise = torch.randn(len(z), 2 * directions, z.shape[1], dtype=z.dtype, device=z.device, generator=generator)
            basis = noise @ inverse
            left = torch.arange(0, 2 * directions, 2, device=z.device)
            right, share = left + 1, z.new_full((directions,), 1 / directions)
        else:
            basis = inverse
            left, right = torch.triu_indices(z.shape[1], z.shape[1], device=z.device)
            share = torch.where(left == right, 1.0, 2.0).to(z.dtype)
        bend = here.bend(basis, left, right)
        tangential = bend @ (inverse @ pulled).transpose(1, 2)  # [n, k, d] in the orthonormal frame
        normal = bend - tangential @ (inverse @ here.slope)
        extrinsic = (normal * inner(normal, gram)).sum(2) @ share
        return Curvature(extrinsic.clamp_min(0), tangential.square().sum(2) @ share, metric)
