"""``ScoreMatching``: fits a prior whose constant is unknown."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trifold.errors import SpecError
from trifold.records import Pass
from trifold.terms.base import Term
from trifold.terms.blocks import columns, sample


def score_matching(log_prob: Callable[[Tensor], Tensor], z: Tensor, *, probes: int = 0) -> Tensor:
    r"""Hyvärinen's objective at each row: :math:`\sum_k \partial_k^2 \log p(z) + \tfrac12 (\partial_k \log p(z))^2`. 1/latent unit².

    Its mean under the data's density is the Fisher divergence between that density and p, halved, up to a constant of the data. On a
    fixed sample it has no minimum for flexible p (a log density that bends sharply at single points lowers it without end): fit on fresh
    draws of the posterior, in minibatches. It is blind to how much of the mass lies in parts that are far from each other.

    Args:
        log_prob: [n, d] -> [n] log density up to a constant, each row on its own; twice differentiable.
        z: [n, d] where; held fixed.
        probes: 0: the exact diagonal of the Hessian, d backward passes in one; k: Hutchinson's estimate, :math:`v^\top H v` averaged over
            k vectors v of random signs, unbiased.

    Returns:
        [n], with a gradient in the parameters of ``log_prob`` only.

    Source: Hyvärinen, JMLR 6 (2005), eq. 4; Song et al., UAI 2019 (Hutchinson).
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        (score,) = torch.autograd.grad(log_prob(z).sum(), z, create_graph=True, materialize_grads=True)
        if not score.requires_grad:  # log p is linear in z
            return 0.5 * score.square().sum(1)
        if probes == 0:
            rows = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)[:, None, :].expand(-1, len(z), -1)  # [d, n, d]
            (hessian,) = torch.autograd.grad(score, z, rows, create_graph=True, is_grads_batched=True, materialize_grads=True)
            trace = hessian.diagonal(dim1=0, dim2=2).sum(1)
        else:
            trace = torch.zeros_like(score[:, 0])
            for _ in range(probes):
                signs = torch.randint(0, 2, z.shape, device=z.device).to(z.dtype) * 2 - 1
                (product,) = torch.autograd.grad(score, z, signs, create_graph=True, materialize_grads=True)
                trace = trace + (product * signs).sum(1) / probes
        return trace + 0.5 * score.square().sum(1)


class ScoreMatching(Term):
    """Hyvärinen's objective for the prior at the cells' latents, per cell. Below 0 at a good fit; 1/latent unit².

    z is held: only the prior's parameters get a gradient. Computed in float32 whatever the autocast.

    Args:
        block: Name of the prior's block that is fitted; None: the whole prior, blocks of known constant too.
        probes: 0: exact second derivatives (cost grows with the dimension); k: Hutchinson's estimate from k random vectors.

    Raises:
        SpecError: A negative number of probes.

    Source: Aliee et al. 2023, the non-factorised prior. Their code takes the sum of a Hessian's row for its diagonal.
    """

    def __init__(self, block: str | None = None, *, probes: int = 0):
        super().__init__()
        if probes < 0:
            raise SpecError(f"ScoreMatching needs probes >= 0; found {probes}.")
        self.block = block
        self.probes = probes

    def forward(self, p: Pass) -> Tensor:
        """[n] 1/latent unit²."""
        columns(p, self.block)
        prior = p.vae.prior if self.block is None else p.vae.prior.blocks[self.block]
        with torch.autocast(p.z.device.type, enabled=False):
            return score_matching(lambda z: prior.log_prob(z, p.batch), sample(p, self.block), probes=self.probes)
