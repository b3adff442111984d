"""Paths on a decoder's surface: straight in the latent, or shortest on the surface."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trifold.errors import ShapeError, SpecError
from trifold.geometry.jets import local
from trifold.geometry.surface import Surface, full, inner, points_of, surface_of

_MODES = 12  # sine modes by which a path departs from the straight line
_NODES = 48  # Gauss-Legendre nodes at which its speed is measured


@dataclass(frozen=True)
class Path:
    """Curves in the latent between pairs of points, as a straight line plus sine modes.

    Args:
        start, end: [n, d] latent ends.
        modes: [n, m, d] coefficients of sin(k π t), k = 1 ... m; all zero for straight lines.
        length: [n] lengths on the surface, in units of data space.
    """

    start: Tensor
    end: Tensor
    modes: Tensor
    length: Tensor

    def at(self, t: Tensor) -> Tensor:
        """[n, len(t), d] latent points at shares t of the way, in [0, 1]: equal steps of t cover about equal lengths of a geodesic."""
        return _along(self.start, self.end, self.modes, t)[0]


def straight(f: Any, a: Tensor, b: Tensor) -> Path:
    """Straight lines in the latent, with their lengths on the surface.

    Args:
        f: A surface, or any callable [n, d] -> [n, g] that maps rows on their own.
        a, b: [n, d] ends.

    Raises:
        ShapeError: Ends of different or wrong shapes.
    """
    surface, (a, b) = surface_of(f).once(), _ends(a, b)
    modes = a.new_zeros(len(a), 0, a.shape[1])
    with torch.no_grad(), full(a):
        return Path(a, b, modes, _length(surface, a, b, modes))


def geodesic(f: Any, a: Tensor, b: Tensor, *, iterations: int = 200) -> Path:
    """Shortest curves on the surface near the straight lines between pairs of latent points.

    The energy of a path, straight line plus 12 sine modes, is minimised by L-BFGS; where the surface folds back there may be shorter ones.
    A path that would come out longer than the straight line is left straight.

    Args:
        f: A surface, or any callable [n, d] -> [n, g] that maps rows on their own.
        a, b: [n, d] ends.
        iterations: Steps of L-BFGS at most.

    Returns:
        The paths with their lengths, in units of data space.

    Raises:
        ShapeError: Ends of different or wrong shapes.
        SpecError: No iterations.
    """
    if iterations < 1:
        raise SpecError(f"geodesic needs iterations >= 1; found {iterations}.")
    surface, (a, b) = surface_of(f), _ends(a, b)
    with torch.inference_mode(False), torch.enable_grad(), full(a):
        surface, a, b = surface.still(), a.detach().clone(), b.detach().clone()
        order = torch.arange(1, _MODES + 1, dtype=a.dtype, device=a.device)[:, None]
        raw = a.new_zeros(len(a), _MODES, a.shape[1]).requires_grad_()
        scale = (b - a).norm(dim=1)[:, None, None] / (math.pi * order)  # of unit influence on the energy in flat space
        search = torch.optim.LBFGS(
            [raw], max_iter=iterations, history_size=20, line_search_fn="strong_wolfe", tolerance_grad=1e-9, tolerance_change=1e-12
        )
        t, w = _quadrature(a)
        along = surface.repeat(_NODES)
        with torch.no_grad():  # each pair in units of its straight line's energy, so that far pairs do not drown near ones
            unit = _speed_at(along, a, b, raw * scale, t).square() @ w
            unit = unit.clamp_min(torch.finfo(a.dtype).eps * unit.max() + torch.finfo(a.dtype).tiny)

        def energy() -> Tensor:
            search.zero_grad()
            loss = (_speed_at(along, a, b, raw * scale, t).square() @ w / unit).sum()
            (raw.grad,) = torch.autograd.grad(loss, [raw])
            return loss.detach()

        search.step(energy)  # type: ignore[no-untyped-call]
    with torch.no_grad(), full(a):
        modes = torch.nan_to_num(raw.detach() * scale)
        length, plain = _length(surface, a, b, modes), _length(surface, a, b, modes[:, :0])
        worse = ~(length <= plain)
        modes = torch.where(worse[:, None, None], torch.zeros_like(modes), modes)
        return Path(a, b, modes, torch.where(worse, plain, length))


def straightness(f: Any, a: Tensor, b: Tensor) -> Tensor:
    """[n] length of the decoded straight line over that of the geodesic; 1 where straight is shortest. Dimensionless.

    Args:
        f: A surface, or any callable [n, d] -> [n, g] that maps rows on their own.
        a, b: [n, d] ends, apart from each other.
    """
    shortest = geodesic(f, a, b).length
    return torch.where(shortest > 0, straight(f, a, b).length / shortest, torch.ones_like(shortest))


def _ends(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    a, b = points_of(a), points_of(b)
    if a.shape != b.shape:
        raise ShapeError(f"A path needs as many ends b as beginnings a, [n, d] each; found a {tuple(a.shape)} and b {tuple(b.shape)}.")
    return a, b


def _along(a: Tensor, b: Tensor, modes: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Points and velocities, [n, q, d]."""
    order = math.pi * torch.arange(1, modes.shape[1] + 1, dtype=t.dtype, device=t.device)
    angle = t[:, None] * order
    points = a[:, None] + t[:, None] * (b - a)[:, None] + torch.sin(angle) @ modes
    return points, (b - a)[:, None] + (torch.cos(angle) * order) @ modes


def _speed_at(surface: Surface, a: Tensor, b: Tensor, modes: Tensor, t: Tensor) -> Tensor:
    """[n, q] speeds in data space, on a surface repeated q times."""
    points, velocity = _along(a, b, modes, t)
    slope = local(surface, points.flatten(0, 1)).slope
    tangent = (velocity.flatten(0, 1)[:, None] @ slope)[:, 0]
    square = (tangent * inner(tangent, surface.gram)).sum(1).clamp_min(0)
    return (square + torch.finfo(t.dtype).tiny).sqrt().unflatten(0, points.shape[:2])


def _quadrature(like: Tensor) -> tuple[Tensor, Tensor]:
    x, w = np.polynomial.legendre.leggauss(_NODES)
    return torch.as_tensor(0.5 * (x + 1)).to(like), torch.as_tensor(0.5 * w).to(like)


def _length(surface: Surface, a: Tensor, b: Tensor, modes: Tensor) -> Tensor:
    t, w = _quadrature(a)
    return _speed_at(surface.repeat(_NODES), a, b, modes, t) @ w
