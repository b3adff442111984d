"""Decoders: a latent point and covariates in, features out, which the likelihood turns into a distribution."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence

import torch
from torch import Tensor, nn

from trifold.core.covariates import joined
from trifold.geometry import Chain, chain_of
from trifold.nets import MLP
from trifold.records import Batch
from trifold.spec import Component


class Decoder(Component, nn.Module):
    """Features of p(x | z, c) from one network; covariates enter its first layer.

    Args:
        network: From latent dimensions to features. Leaves its activations as taps ``"decoder.0"``, ``"decoder.1"``, ...
        roles: Roles of the schema that the network sees beside z, in this order.
        skip: Put z itself beside the network's features, so that the likelihood's last layer holds a linear map of z, and the network only
            what departs from it.
    """

    def __init__(self, network: MLP, *, roles: Sequence[str] = (), skip: bool = False):
        super().__init__()
        self.network = network
        self.roles = tuple(roles)
        self.skip = skip

    @property
    def width(self) -> int:
        """Width h of the features."""
        return self.network.width + (self.network.inputs if self.skip else 0)

    def forward(self, z: Tensor, batch: Batch, *, taps: MutableMapping[str, Tensor] | None = None) -> Tensor:
        """[n, h] features of z [n, d] under the batch's covariates."""
        h = self.network(z, joined(batch, self.roles), taps=taps, name="decoder")
        return torch.cat([h, z], 1) if self.skip else h

    def chain(self, batch: Batch) -> Chain | None:
        """The features in closed form under the batch's covariates, if they have one."""
        return chain_of(self.network, joined(batch, self.roles), skip=self.skip)


class EffectDecoder(Component, nn.Module):
    r"""Features whose linear map is a base plus the covariates' own effects, which vary smoothly and slowly with z.

    .. math:: W h = W_0\,b(z) + \sum_j c_j \left(\delta_j + U_j\,\varphi(z)\right)

    with :math:`b` the base network, :math:`c_j` the columns of the design, :math:`\delta_j` one effect for all cells and
    :math:`U_j\varphi(z)` a low-rank departure from it. Shrinking :math:`U` (``Shrinkage``) makes an effect fall back on the mean effect
    wherever z says nothing.

    Args:
        network: From latent dimensions to the base features. Leaves taps ``"decoder.0"``, ...
        effect: From latent dimensions to :math:`\varphi`, before a tanh.
        rank: Width k of :math:`\varphi`.
        covariates: Width c of the roles' designs.
        roles: Roles of the schema that have effects, in this order.
    """

    def __init__(self, network: MLP, effect: MLP, *, rank: int, covariates: int, roles: Sequence[str]):
        super().__init__()
        self.network = network
        self.effect = effect
        self.rank = rank
        self.covariates = covariates
        self.roles = tuple(roles)
        self.path = nn.Linear(effect.width, rank)

    @property
    def width(self) -> int:
        """Width h of the features: base, one per covariate, rank per covariate."""
        return self.network.width + self.covariates * (1 + self.rank)

    def forward(self, z: Tensor, batch: Batch, *, taps: MutableMapping[str, Tensor] | None = None) -> Tensor:
        """[n, h] features of z [n, d] under the batch's covariates."""
        design = joined(batch, self.roles)
        base = self.network(z, taps=taps, name="decoder")
        if design is None:
            return base  # type: ignore[no-any-return]
        smooth = torch.tanh(self.path(self.effect(z)))
        return torch.cat([base, design, (design[:, :, None] * smooth[:, None, :]).flatten(1)], 1)
