"""What a prior offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent

from trifold.records import Batch
from trifold.spec import Component


@dataclass(frozen=True)
class Candidates:
    """Components of a mixture prior, of which a cell's latent is one.

    Args:
        each: The components, diagonal Gaussians: batch [1, k], event [d].
        log_share: [k] log probability of each component.
        known: [n] int64 component of each cell, -1 where it may be any; None: any for all cells.
    """

    each: Independent
    log_share: Tensor
    known: Tensor | None = None

    def log_prob(self, z: Tensor) -> Tensor:
        """[n, k] log p(k) p(z | k), nats."""
        return self.each.log_prob(z[:, None]) + self.log_share

    def assign(self, z: Tensor) -> Tensor:
        """[n] the component of each cell: the known one, or the most probable."""
        if self.known is not None and self.known.device.type == "cpu" and bool((self.known >= 0).all()):  # a look that is free there
            return self.known
        likely = self.log_prob(z).argmax(1)
        return likely if self.known is None else torch.where(self.known < 0, likely, self.known)


class Prior(Component, nn.Module, ABC):
    """p(z | c).

    Attributes:
        latent: Number of latent dimensions d.
        normalised: False when ``log_prob`` is known up to a constant only.
    """

    latent: int
    normalised: bool = True

    @abstractmethod
    def log_prob(self, z: Tensor, batch: Batch) -> Tensor:
        """[n] log p(z | c) in nats, z [n, d]."""

    def distribution(self, batch: Batch) -> Distribution | None:
        """The distribution of each cell's latent (batch [n], event [d]) where it is one that torch knows, else None."""
        return None

    def candidates(self, batch: Batch) -> Candidates | None:
        """For a prior that is a mixture, for all cells or for those of unknown category; None for other priors."""
        return None

    def carry(self, z: Tensor, batch: Batch, under: Batch) -> Tensor:
        """[n, d] each cell's z, [n, d], moved from its place under the covariates of ``batch`` to the same place under those of ``under``.

        The map that carries the one conditional prior to the other where that is known, else z itself.
        """
        return z

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles of the schema on which the prior depends, and along which :meth:`carry` moves."""
        return ()

    def held(self, z: Tensor, batch: Batch) -> Tensor:
        """[n] log p(z | c) as the evidence lower bound may use it, nats.

        Where the constant is unknown the bound says nothing about the parameters: raising log p everywhere would raise it without end. They
        are then held (the gradient goes to z only), and score matching moves them. A normalised prior is its ``log_prob``.
        """
        if self.normalised:
            return self.log_prob(z, batch)
        still = {name: p.detach() for name, p in self.named_parameters()}
        return torch.func.functional_call(self, still, (z, batch))

    def forward(self, z: Tensor, batch: Batch) -> Tensor:
        """[n] log p(z | c), the same as ``log_prob``."""
        return self.log_prob(z, batch)

    @property
    def slices(self) -> Mapping[str, slice]:
        """name -> columns of z, for a prior of named blocks; else empty."""
        return {}
