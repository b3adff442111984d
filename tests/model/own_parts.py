"""Components as a user would write them, in a module of their own."""

from __future__ import annotations

import torch
from torch import nn

import trifold
from trifold.core import Gaussian
from trifold.core.likelihood.gaussian import Normal
from trifold.nets import MLP
from trifold.spec import Component


class Calm(trifold.Term):
    """Penalises latents that are far from the origin, beyond a radius."""

    def __init__(self, *, radius: float = 1.0):
        super().__init__()
        self.radius = radius
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, p):
        return self.scale * (p.z.norm(dim=1) - self.radius).clamp_min(0)


class Doubled(trifold.Likelihood):
    """A Gaussian of unit variance around twice a linear map."""

    kind = "real"

    def __init__(self, features: int, genes: int):
        super().__init__()
        self.features = features
        self.genes = genes
        self.out = nn.Linear(features, genes)

    def start(self, mean, var):
        with torch.no_grad():
            self.out.bias.copy_(mean / 2)

    def distribution(self, h, batch):
        return Normal(2 * self.out(h), torch.ones(()))

    def log_prob(self, h, batch):
        return self.distribution(h, batch).log_prob(batch.rows.to_dense()).sum(1)

    def transport(self, h, target, batch, under, *, generator=None):
        return batch.rows.to_dense() + self.mean(target, under) - self.mean(h, batch)


class Forgetful(trifold.Term):
    """Breaks the contract: does not keep its argument."""

    def __init__(self, *, strength: float):
        super().__init__()

    def forward(self, p):
        return p.z.sum(1)


class Shadow(Gaussian):
    """A class of ours, imported from here."""


class Loud(Component):
    """Would announce that its module was run."""


def own_vae(genes: int, latent: int = 2) -> trifold.VAE:
    from trifold.core import Decoder, Posterior, StandardNormal

    return trifold.VAE(Posterior(MLP(genes, (6,)), latent), StandardNormal(latent), Decoder(MLP(latent, (6,))), Doubled(6, genes))
