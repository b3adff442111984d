r"""Count log-probabilities split exactly into a dense part and a part at nonzeros, with closed-form gradients.

With :math:`\mu = L\,\mathrm{softmax}(s)`, inverse dispersion :math:`\theta` and :math:`f = \mu / (\theta + \mu)`:

.. math::
    \log p = \sum_g -\theta \log(1 + \mu/\theta)
           + \sum_{x > 0} x \log f + \ln\Gamma(x + \theta) - \ln\Gamma(\theta) - \ln\Gamma(x + 1)

The special functions are evaluated at the nonzeros only (5 to 25 % of the entries), and nothing but the gradient itself is kept for
the backward pass. Zero inflation splits the same way.

The numbers come from a :class:`Backend`: a kernel for the device, or plain PyTorch (:mod:`trifold.dist.plain`), which every other agrees
with up to rounding. float64 is always plain. ``TRIFOLD_KERNELS=plain`` and :func:`trifold.compiled.plain_kernels` ask for it everywhere.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trifold.compiled import compiled, kernels_wanted
from trifold.dist.plain import split_plain
from trifold.records import Rows

Parts = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]


class Backend(Protocol):
    """Log-probabilities, and their derivatives if asked for."""

    def __call__(self, scores: Tensor, log_size: Tensor, log_theta: Tensor, dropout: Tensor | None, rows: Rows, *, grads: bool) -> Parts:
        """[n] log-probabilities, and their [n, g] derivatives in scores, log theta (also where it is [g]) and dropout.

        Args:
            scores: [n, g].
            log_size: [n, 1].
            log_theta: [g] or [n, g].
            dropout: [n, g], or None without zero inflation; its derivative is None then.
            rows: n x g counts.
            grads: Whether the derivatives are needed; if not, all three are None.
        """


def nb_log_prob(scores: Tensor, log_size: Tensor, log_theta: Tensor, rows: Rows) -> Tensor:
    r"""log p of counts under a negative binomial with mean L softmax(scores). Nats, summed over genes.

    Args:
        scores: [n, g] unnormalised log rates s.
        log_size: [n, 1] log library size, log L.
        log_theta: log inverse dispersion, [g] or [n, g].
        rows: n x g counts.

    Returns:
        [n] log-probabilities, with gradients in scores and log_theta: float64 if the scores are, else float32.
    """
    return _log_prob(scores, log_size, log_theta, None, rows)


def zinb_log_prob(scores: Tensor, log_size: Tensor, log_theta: Tensor, dropout: Tensor, rows: Rows) -> Tensor:
    r"""log p of counts under a zero-inflated negative binomial. Nats, summed over genes.

    With probability sigmoid(dropout) a count is a structural zero, else it is negative binomial with mean L softmax(scores).

    Args:
        scores: [n, g] unnormalised log rates s.
        log_size: [n, 1] log library size, log L.
        log_theta: log inverse dispersion, [g] or [n, g].
        dropout: [n, g] logits of a structural zero.
        rows: n x g counts.

    Returns:
        [n] log-probabilities, with gradients in scores, log_theta and dropout: float64 if the scores are, else float32.
    """
    return _log_prob(scores, log_size, log_theta, dropout, rows)


def backend_for(scores: Tensor) -> Backend:
    """The backend that evaluates scores of this device and type."""
    if scores.dtype == torch.float32 and scores.device.type == "cpu" and compiled():
        from trifold.dist.fused import split_fused

        return split_fused
    if scores.dtype == torch.float32 and scores.device.type == "cuda" and kernels_wanted() and _triton():
        from trifold.dist.cuda import split_cuda

        return split_cuda
    return split_plain


def _log_prob(scores: Tensor, log_size: Tensor, log_theta: Tensor, dropout: Tensor | None, rows: Rows) -> Tensor:
    dtype = torch.float64 if scores.dtype == torch.float64 else torch.float32
    scores, log_size, log_theta = scores.to(dtype), log_size.to(dtype), log_theta.to(dtype)
    dropout = None if dropout is None else dropout.to(dtype)
    needed = (scores, log_theta) if dropout is None else (scores, log_theta, dropout)
    if torch.is_grad_enabled() and any(t.requires_grad for t in needed):
        return _Split.apply(scores, log_size, log_theta, dropout, rows)  # type: ignore[no-any-return]
    return backend_for(scores)(scores, log_size, log_theta, dropout, rows, grads=False)[0]


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, log_size: Tensor, log_theta: Tensor, dropout: Tensor | None, rows: Rows) -> Tensor:
        out, *slopes = backend_for(scores)(scores, log_size, log_theta, dropout, rows, grads=True)
        ctx.shared = log_theta.dim() == 1
        ctx.save_for_backward(*slopes)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *up: Tensor) -> tuple[Tensor | None, ...]:
        d_scores, d_logtheta, d_dropout = ctx.saved_tensors
        w = up[0].view(-1, 1)
        to_scores = w * d_scores if ctx.needs_input_grad[0] else None
        to_theta = ((up[0] @ d_logtheta) if ctx.shared else w * d_logtheta) if ctx.needs_input_grad[2] else None
        return to_scores, None, to_theta, (None if d_dropout is None or not ctx.needs_input_grad[3] else w * d_dropout), None


@cache
def _triton() -> bool:
    return find_spec("triton") is not None
