"""What a likelihood offers: four views of p(x | z, c) that agree, and a transport between two of them."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from trifold.records import Batch
from trifold.spec import Component


class Likelihood(Component, nn.Module, ABC):
    """p(x | features): owns the last linear layer, from h features to g genes.

    The batch gives the library size and the covariates; only ``log_prob`` and ``transport`` look at its rows.

    Attributes:
        kind: ``"counts"``, ``"real"`` or ``"binary"``: the values that it is for.
    """

    kind: str = "real"
    out: nn.Linear

    def linear(self) -> tuple[Tensor, Tensor]:
        """([g, h], [g]) weight and bias of the last linear map: where geometry is taken."""
        return self.out.weight, self.out.bias

    @abstractmethod
    def log_prob(self, h: Tensor, batch: Batch) -> Tensor:
        """[n] log p(x | h) in nats, summed over genes: exact, aware of sparse rows. h: [n, h]."""

    @abstractmethod
    def start(self, mean: Tensor, var: Tensor) -> None:
        """Set the biases so that untrained features give the data's mean; training begins there.

        Args:
            mean: [g] mean of x over the training cells.
            var: [g] variance of x.
        """

    def information(self, h: Tensor, batch: Batch) -> Tensor:
        """[n, g], or [1, g] if all cells share it: Fisher information of each gene's linear output; here for an output that is the mean.

        It sets the length of the steps by which a cell's latent is improved, not where they end.
        """
        return 1 / self.distribution(h, batch).variance

    @abstractmethod
    def distribution(self, h: Tensor, batch: Batch) -> Distribution:
        """p(x | h) per cell and gene, of batch shape [n, g]."""

    def mean(self, h: Tensor, batch: Batch) -> Tensor:
        """[n, g] expected value of x, in the units of x."""
        return self.distribution(h, batch).mean

    def sample(self, h: Tensor, batch: Batch, *, generator: torch.Generator | None = None) -> Tensor:
        """[n, g] a draw of x."""
        return self.distribution(h, batch).sample(generator=generator)  # type: ignore[call-arg]

    @abstractmethod
    def transport(self, h: Tensor, target: Tensor, batch: Batch, under: Batch, *, generator: torch.Generator | None = None) -> Tensor:
        """The batch's own values, moved from p(. | h) to p(. | target), so that each cell keeps its own noise.

        Args:
            h: [n, h] features of the cells as they are.
            target: [n, h] features of the same cells under other covariates.
            batch: The cells, whose rows are moved.
            under: The batch under the other covariates.
            generator: Where the noise comes from.

        Returns:
            [n, g] values. If x follows p(. | h), the result follows p(. | target); equal features give x back.
        """


def output_layer(features: int, genes: int) -> nn.Linear:
    """A linear layer that starts near zero, so that what no cell ever pulls on says nothing, rather than something at random."""
    layer = nn.Linear(features, genes)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer
