"""The posterior q(z | x, c): rows and covariates in, a diagonal Gaussian out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from trifold.core.covariates import joined
from trifold.errors import SpecError, suggest
from trifold.nets import MLP
from trifold.records import Batch, Rows
from trifold.spec import Component

TRANSFORMS = ("none", "log1p", "lognorm")
_TARGET = 1e4  # counts per cell to which "lognorm" scales, the field's custom


class Posterior(Component, nn.Module):
    """q(z | x, c), a Gaussian with diagonal covariance, from a network over the (transformed) rows.

    Args:
        network: The network; its first layer takes the rows, sparse or dense.
        latent: Number of latent dimensions d.
        roles: Roles of the schema that the network sees beside the rows, in this order.
        transform: What is done to x first: ``"none"``, ``"log1p"``, or ``"lognorm"`` (scaled to 10,000 counts per cell, then log1p).
            All keep zeros, so that sparse rows stay sparse.

    Raises:
        SpecError: An unknown transform.
    """

    def __init__(self, network: MLP, latent: int, *, roles: Sequence[str] = (), transform: str = "none"):
        super().__init__()
        if transform not in TRANSFORMS:
            raise SpecError(
                f"transform needs one of {', '.join(map(repr, TRANSFORMS))}; found {transform!r}.{suggest(transform, TRANSFORMS)}"
            )
        self.network = network
        self.latent = latent
        self.roles = tuple(roles)
        self.transform = transform
        self.head = nn.Linear(network.width, 2 * latent)

    def forward(self, batch: Batch) -> Independent:
        """The distribution of each cell's latent: batch [n], event [d]."""
        mean, raw = self.head(self.network(self._input(batch), joined(batch, self.roles))).float().chunk(2, 1)
        return Independent(Normal(mean, torch.exp(0.5 * raw.clamp(-12, 12)), validate_args=False), 1, validate_args=False)

    def _input(self, batch: Batch) -> Rows:
        if self.transform == "none":
            return batch.rows
        rows = batch.rows if self.transform == "log1p" else batch.rows.scale(_TARGET / batch.size.clamp_min(1))
        return rows.map(torch.log1p)


def draw(qz: Independent, generator: torch.Generator | None = None) -> Tensor:
    """[n, d] a reparametrised sample of a diagonal Gaussian, from one's own generator if given."""
    mean, scale = qz.base_dist.mean, qz.base_dist.stddev
    return mean + scale * torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
