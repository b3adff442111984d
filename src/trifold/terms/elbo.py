"""The two halves of the evidence lower bound: ``NLL`` and ``KL``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, kl_divergence

from trifold.dist import diagonal
from trifold.errors import SpecError
from trifold.records import Pass
from trifold.terms.base import Term, once
from trifold.terms.blocks import columns, marginal

_CONSTANT = "free needs a normalised prior; that of block {!r} is known up to a constant. Pass free=0 for this block."


class NLL(Term):
    """-log p(x | z, c), nats per cell, summed over genes."""

    def forward(self, p: Pass) -> Tensor:
        """[n] nats."""
        return -p.vae.likelihood.log_prob(p.h, p.batch)  # type: ignore[no-any-return]


class KL(Term):
    """KL(q(z | x, c) || p(z | c)), nats per cell, summed over latent dimensions.

    In closed form where torch knows it for the pair; from a mixture by the bound of :func:`mixed`, and so too for cells whose category a
    conditional prior takes for any; else the one-sample estimate log q(z) - log p(z). For a prior of named blocks, block by block. Of a
    prior that is known up to a constant the parameters are held: the value is off by that constant, and the gradient goes to the encoder
    only.

    Args:
        block: Name of the prior's block whose divergence it is, so that blocks can be weighted apart; None: of all of z.
        free: Nats per cell below which nothing is penalised (free bits): a number, on the sum over dimensions, or name of a block -> nats.

    Raises:
        SpecError: Negative free bits, or free bits by name for one block.
    """

    def __init__(self, block: str | None = None, *, free: float | Mapping[str, float] = 0.0):
        super().__init__()
        for nats in free.values() if isinstance(free, Mapping) else [free]:
            if nats < 0:
                raise SpecError(f"KL needs free >= 0 nats; found {nats}.")
        if block is not None and isinstance(free, Mapping):
            raise SpecError(
                f"KL of one block, {block!r}, needs free as a number of nats; found {dict(free)}. Pass free={free.get(block, 0.0)}."
            )
        self.block = block
        self.free = dict(free) if isinstance(free, Mapping) else free

    def forward(self, p: Pass) -> Tensor:
        """[n] nats.

        Raises:
            SpecError: Free bits of a block that the prior does not have, or whose density is known up to a constant only.
        """
        priors = getattr(p.vae.prior, "blocks", {})
        if self.block is not None:
            at = columns(p, self.block)
            if self.free and not priors[self.block].normalised:
                raise SpecError(_CONSTANT.format(self.block))
            return _at_least(self.free, _divergence(marginal(p, self.block), priors[self.block], p.z[:, at], p))  # type: ignore[arg-type]
        per_block = self.free if isinstance(self.free, dict) else {}
        for name, nats in per_block.items():
            columns(p, name)
            if nats > 0 and not priors[name].normalised:
                raise SpecError(_CONSTANT.format(name))
        if priors:
            parts = {name: _divergence(marginal(p, name), prior, p.z[:, columns(p, name)], p) for name, prior in priors.items()}
            value = torch.stack([_at_least(per_block.get(name, 0.0), part) for name, part in parts.items()]).sum(0)
        else:
            value = _divergence(p.qz, p.vae.prior, p.z, p)
        return value if isinstance(self.free, dict) else _at_least(self.free, value)


def _at_least(nats: float, value: Tensor) -> Tensor:
    return value if nats == 0 else value.clamp_min(nats)


def mixed(apart: Tensor, log_share: Tensor) -> Tensor:
    r"""An upper bound of KL(q || a mixture of k distributions), from the divergence of q from each. Nats.

    .. math:: -\log \sum_j w_j e^{-\mathrm{KL}(q \| p_j)}

    Exact where the p_j are the same, or far from each other against the width of q.

    Args:
        apart: [n, k] nats.
        log_share: [k] log w.

    Returns:
        [n].

    Source: Hershey and Olsen, ICASSP 2007, the variational approximation, of one Gaussian from a mixture.
    """
    return -(log_share - apart).logsumexp(1)


def gaussian_kl(mean: Tensor, scale: Tensor, prior_mean: Tensor, prior_scale: Tensor) -> Tensor:
    r"""KL of a diagonal Gaussian from another, with its gradient in closed form. Nats.

    .. math:: \sum_d \tfrac12 (r_d^2 + t_d^2 - 1) - \log r_d, \quad r = s / s_0, \quad t = (m - m_0) / s_0

    Args:
        mean, scale: [n, d] m and the standard deviations s.
        prior_mean, prior_scale: [n, d] those of the other.

    Returns:
        [n].
    """
    return _GaussianKL.apply(mean, scale, prior_mean, prior_scale)  # type: ignore[no-any-return]


class _GaussianKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor, scale: Tensor, prior_mean: Tensor, prior_scale: Tensor) -> Tensor:
        r, t = scale / prior_scale, (mean - prior_mean).div_(prior_scale)
        ctx.save_for_backward(r, t, prior_scale)
        return torch.addcmul(r * r, t, t).sub_(1).mul_(0.5).sub_(r.log()).sum(1)

    @staticmethod
    def backward(ctx: Any, *up: Tensor) -> tuple[Tensor | None, ...]:
        once("KL of two Gaussians")
        r, t, prior_scale = ctx.saved_tensors
        over = up[0][:, None] / prior_scale
        of_mean = t * over
        of_prior = -of_mean if ctx.needs_input_grad[2] else None
        of_prior_scale = torch.addcmul(r * r, t, t).neg_().add_(1).mul_(over) if ctx.needs_input_grad[3] else None
        return of_mean, (r - r.reciprocal()).mul_(over), of_prior, of_prior_scale


def _divergence(qz: Distribution, prior: Any, z: Tensor, p: Pass) -> Tensor:
    found = prior.candidates(p.batch)
    if found is None or (found.known is not None and found.known.device.type == "cpu" and bool((found.known >= 0).all())):
        return _own(qz, prior, z, p)
    wide = diagonal(qz.mean[:, None], qz.stddev[:, None])
    bound = mixed(kl_divergence(wide, found.each), found.log_share)
    return bound if found.known is None else torch.where(found.known < 0, bound, _own(qz, prior, z, p))


def _own(qz: Distribution, prior: Any, z: Tensor, p: Pass) -> Tensor:
    law = prior.distribution(p.batch)
    if law is not None:
        if _is_diagonal(qz) and _is_diagonal(law) and qz.mean.shape == law.mean.shape:
            return gaussian_kl(qz.mean, qz.stddev, law.mean, law.stddev)
        try:
            return kl_divergence(qz, law)
        except NotImplementedError:
            pass  # torch has no closed form for this pair
    return qz.log_prob(z) - prior.held(z, p.batch)  # type: ignore[no-any-return]


def _is_diagonal(law: Distribution) -> bool:
    return isinstance(law, Independent) and isinstance(law.base_dist, Normal) and law.base_dist.mean.dim() == 2
