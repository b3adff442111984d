"""Which genes change along a direction, and how sure several models are of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trifold.errors import ShapeError
from trifold.geometry.jets import local
from trifold.geometry.surface import full, points_of, surface_of


@dataclass(frozen=True)
class Signature:
    """Change of each gene along a direction, over models.

    Args:
        change: [g] mean over models; each model's is of unit length over the genes.
        error: [g] standard error over models; NaN with one model.
        agreement: [g] share of models in which the sign is that of the mean.
    """

    change: Tensor
    error: Tensor
    agreement: Tensor


def signature(f: Any, z: Any, direction: Any) -> Signature:
    """Genes that change along a latent direction: the derivative of the map, averaged over points and scaled to length 1.

    Args:
        f: A surface, or any callable [n, d] -> [n, g]; or a list of them, one per seed, whose latents need not agree.
        z: [n, d] latent points at which derivatives are taken; a list of them for a list of maps.
        direction: [d] latent direction, or [n, d], one per point; a list of them for a list of maps.

    Returns:
        The change with its standard error and agreement over the maps.

    Raises:
        ShapeError: Lists of different lengths, or a direction that is not of the points' width.
    """
    if not isinstance(f, Sequence):
        f, z, direction = [f], [z], [direction]
    if not (len(f) == len(z) == len(direction) > 0):
        raise ShapeError(
            f"signature needs one set of points z and one direction for each map f; found {len(f)} maps, {len(z)} sets and "
            f"{len(direction)} directions. Pass lists of one length."
        )
    changes = torch.stack([_change(*one) for one in zip(f, z, direction, strict=True)])
    mean = changes.mean(0)
    error = changes.std(0) / len(changes) ** 0.5 if len(changes) > 1 else torch.full_like(mean, torch.nan)
    return Signature(mean, error, (changes.sign() == mean.sign()).to(mean.dtype).mean(0))


def _change(f: Any, z: Tensor, direction: Tensor) -> Tensor:
    surface, z = surface_of(f), points_of(z)
    if direction.shape not in {(z.shape[1],), tuple(z.shape)}:
        raise ShapeError(f"direction needs shape ({z.shape[1]},) or {tuple(z.shape)}, as the points; found {tuple(direction.shape)}.")
    with torch.no_grad(), full(z):
        slope = local(surface, z).slope
        tangent = (direction.to(z).expand_as(z)[:, None] @ slope)[:, 0].mean(0)
        change = surface.push(tangent)
        return change / change.norm().clamp_min(torch.finfo(z.dtype).tiny)
