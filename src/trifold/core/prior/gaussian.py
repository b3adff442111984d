"""Gaussian priors: the standard normal, and one whose mean and variance depend on a role's category."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from trifold.core.prior.base import Prior
from trifold.errors import SpecError, suggest
from trifold.records import Batch

LEARNED = ("mean", "variance", "both", "neither")


class StandardNormal(Prior):
    """N(0, I), whatever the covariates.

    Args:
        latent: Number of latent dimensions d.
    """

    def __init__(self, latent: int):
        super().__init__()
        self.latent = latent

    def distribution(self, batch: Batch) -> Independent:
        """Batch [n], event [d]."""
        zero = torch.zeros(batch.n, self.latent, device=batch.size.device)
        return _gaussian(zero, torch.ones_like(zero))

    def log_prob(self, z: Tensor, batch: Batch) -> Tensor:
        """[n] log N(z; 0, I), nats."""
        return self.distribution(batch).log_prob(z)


class ConditionalGaussian(Prior):
    """N(m(c), diag v(c)) with one table row per joint category of a role; unknown categories get N(0, I).

    Args:
        latent: Number of latent dimensions d.
        categories: Number of joint categories of the role.
        role: Role of the schema.
        learned: What training moves: ``"mean"``, ``"variance"``, ``"both"`` or ``"neither"``. The rest stays at mean 0 and variance 1.

    Raises:
        SpecError: An unknown choice of what is learned.
    """

    def __init__(self, latent: int, categories: int, *, role: str, learned: str = "both"):
        super().__init__()
        if learned not in LEARNED:
            raise SpecError(f"learned needs one of {', '.join(map(repr, LEARNED))}; found {learned!r}.{suggest(learned, LEARNED)}")
        self.latent = latent
        self.categories = categories
        self.role = role
        self.learned = learned
        rows = categories + 1  # the last row is the unknown category, which code -1 selects
        self.mean = nn.Parameter(torch.zeros(rows, latent), requires_grad=learned in ("mean", "both"))
        self.log_var = nn.Parameter(torch.zeros(rows, latent), requires_grad=learned in ("variance", "both"))
        self.register_buffer("known", torch.cat([torch.ones(categories, 1), torch.zeros(1, 1)]), persistent=False)

    def distribution(self, batch: Batch) -> Independent:
        """Batch [n], event [d]."""
        code = batch.code[self.role]
        row = torch.where(code < 0, torch.full_like(code, self.categories), code)
        known = self.get_buffer("known")
        return _gaussian((self.mean * known)[row], torch.exp(0.5 * (self.log_var * known)[row].clamp(-12, 12)))

    def log_prob(self, z: Tensor, batch: Batch) -> Tensor:
        """[n] log N(z; m(c), diag v(c)), nats."""
        return self.distribution(batch).log_prob(z)


def _gaussian(mean: Tensor, scale: Tensor) -> Independent:
    return Independent(Normal(mean, scale, validate_args=False), 1, validate_args=False)
