"""What a prior offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from trifold.records import Batch
from trifold.spec import Component


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

    def candidates(self, batch: Batch) -> tuple[Tensor, Distribution] | tuple[None, None]:
        """For a prior that takes a cell of unknown category for one of any, with equal chances.

        Returns:
            ([n] which cells these are; the distributions of all categories, batch [1, k], event [d]); (None, None) for other priors.
        """
        return None, None

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
