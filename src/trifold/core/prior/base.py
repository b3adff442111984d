"""What a prior offers."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn
from torch.distributions import Distribution

from trifold.records import Batch
from trifold.spec import Component


class Prior(Component, nn.Module, ABC):
    """p(z | c).

    Attributes:
        normalised: False when ``log_prob`` is known up to a constant only.
    """

    normalised: bool = True

    @abstractmethod
    def log_prob(self, z: Tensor, batch: Batch) -> Tensor:
        """[n] log p(z | c) in nats, z [n, d]."""

    def distribution(self, batch: Batch) -> Distribution | None:
        """The distribution of each cell's latent (batch [n], event [d]) where it is one that torch knows, else None."""
        return None
