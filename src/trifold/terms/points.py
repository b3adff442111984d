"""Where geometry is looked at: latents of cells, mixtures of them, and points a little beyond."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trifold.records import Pass

_BEYOND = 0.2  # share of the way between two cells by which a mixture may overshoot either


def places(p: Pass, count: int) -> tuple[Tensor, Any, Tensor]:
    """Latent points, the decoder's surface there, and the scale of the data.

    Half of the points are latents of cells, half are a + α (b - a) of two cells with α uniform on [-0.2, 1.2], so that regions without
    data are regular too. Latents are detached: geometry moves the decoder, not the encoder.

    Args:
        p: The pass.
        count: Number of points at most.

    Returns:
        z [k, d], the surface under the covariates of those cells, and R² [], the mean squared distance of the decoded points to their
        centroid, in length² of data space. R² carries a gradient, so that a number times R² asks nothing of the surface's size.
    """
    z = p.z.detach().float()
    order = torch.randperm(len(z), device=z.device)
    chosen = order[:count]
    half = len(chosen) // 2
    at = z[chosen]
    share = torch.rand(half, 1, device=z.device) * (1 + 2 * _BEYOND) - _BEYOND
    at = torch.cat([at[half:], at[:half] + share * (z[order.roll(1)[:half]] - at[:half])])
    surface = p.vae.surface(p.batch.bare(torch.cat([chosen[half:], chosen[:half]]))).once()
    h = surface.features(at).float()
    deviation = h - h.mean(0)
    square = deviation * (deviation if surface.gram is None else deviation @ surface.gram)
    return at, surface, square.sum() / max(1, len(h))
