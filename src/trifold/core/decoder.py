"""The decoder: a latent point and covariates in, features out, which the likelihood turns into a distribution."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence

from torch import Tensor, nn

from trifold.core.covariates import joined
from trifold.nets import MLP
from trifold.records import Batch
from trifold.spec import Component


class Decoder(Component, nn.Module):
    """Features of p(x | z, c) from one network; covariates enter its first layer.

    Args:
        network: From latent dimensions to features. Leaves its activations as taps ``"decoder.0"``, ``"decoder.1"``, ...
        roles: Roles of the schema that the network sees beside z, in this order.
    """

    def __init__(self, network: MLP, *, roles: Sequence[str] = ()):
        super().__init__()
        self.network = network
        self.roles = tuple(roles)

    @property
    def width(self) -> int:
        """Width h of the features."""
        return self.network.width

    def forward(self, z: Tensor, batch: Batch, *, taps: MutableMapping[str, Tensor] | None = None) -> Tensor:
        """[n, h] features of z [n, d] under the batch's covariates."""
        return self.network(z, joined(batch, self.roles), taps=taps, name="decoder")
