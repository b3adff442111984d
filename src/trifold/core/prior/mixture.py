"""``Mixture``: a learned mixture of Gaussians."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from trifold.core.prior.base import Candidates, Prior
from trifold.dist import diagonal
from trifold.errors import SpecError
from trifold.records import Batch


class Mixture(Prior):
    r""":math:`p(z) = \sum_k w_k N(z; m_k, \mathrm{diag}\, v_k)`, whatever the covariates.

    Means begin as draws of N(0, I), so that components differ. KL has no closed form with it: the ELBO takes a bound of it.
    (A VampPrior, whose components are posteriors of learned pseudo-inputs, is not offered: a prior would hold the posterior's network.)

    Args:
        latent: Number of latent dimensions d.
        components: Number of Gaussians.

    Raises:
        SpecError: No component.
    """

    def __init__(self, latent: int, components: int):
        super().__init__()
        if components < 1:
            raise SpecError(f"Mixture needs components >= 1; found {components}. Pass components=10.")
        self.latent = latent
        self.components = components
        self.logit = nn.Parameter(torch.zeros(components), requires_grad=components > 1)  # of one component it says nothing
        self.mean = nn.Parameter(torch.randn(components, latent))
        self.log_var = nn.Parameter(torch.zeros(components, latent))

    def distribution(self, batch: Batch) -> MixtureSameFamily:
        """Batch [n], event [d]."""
        shape = (batch.n, self.components, self.latent)
        scale = torch.exp(0.5 * self.log_var.clamp(-12, 12))
        each = Normal(self.mean.expand(shape), scale.expand(shape), validate_args=False)
        share = Categorical(logits=self.logit.expand(shape[:2]), validate_args=False)
        return MixtureSameFamily(share, Independent(each, 1, validate_args=False), validate_args=False)

    def candidates(self, batch: Batch) -> Candidates:
        """The components, of which every cell is one."""
        scale = torch.exp(0.5 * self.log_var.clamp(-12, 12))
        each = diagonal(self.mean[None], scale[None])
        return Candidates(each, self.logit.log_softmax(0))

    def log_prob(self, z: Tensor, batch: Batch) -> Tensor:
        """[n] log of the mixture's density, nats."""
        return self.distribution(batch).log_prob(z)
