"""The two halves of the evidence lower bound: ``NLL`` and ``KL``."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import kl_divergence

from trifold.errors import SpecError
from trifold.records import Pass
from trifold.terms.base import Term


class NLL(Term):
    """-log p(x | z, c), nats per cell, summed over genes."""

    def forward(self, p: Pass) -> Tensor:
        """[n] nats."""
        return -p.vae.likelihood.log_prob(p.h, p.batch)  # type: ignore[no-any-return]


class KL(Term):
    """KL(q(z | x, c) || p(z | c)), nats per cell, summed over latent dimensions.

    In closed form where torch knows it for the pair, else the one-sample estimate log q(z) - log p(z).

    Args:
        free: Nats per cell below which nothing is penalised (free bits), on the sum over dimensions.

    Raises:
        SpecError: Negative free bits.
    """

    def __init__(self, *, free: float = 0.0):
        super().__init__()
        if free < 0:
            raise SpecError(f"KL needs free >= 0 nats; found {free}.")
        self.free = free

    def forward(self, p: Pass) -> Tensor:
        """[n] nats."""
        value = _divergence(p)
        return value if self.free == 0 else value.clamp_min(self.free)


def _divergence(p: Pass) -> Tensor:
    prior = p.vae.prior.distribution(p.batch)
    if prior is not None:
        try:
            return kl_divergence(p.qz, prior)  # type: ignore[no-any-return]
        except NotImplementedError:
            pass  # torch has no closed form for this pair
    return p.qz.log_prob(p.z) - p.vae.prior.log_prob(p.z, p.batch)  # type: ignore[no-any-return]
