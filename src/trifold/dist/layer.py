"""The last linear layer and the count log-probability as one function: no pass over the [n, g] matrices but the kernel's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from trifold.compiled import compiled
from trifold.dist.split import nb_log_prob, zinb_log_prob
from trifold.records import Rows

Linear = tuple[Tensor, Tensor]  # [g, h] weight, [g] bias


def log_prob_of_features(h: Tensor, rate: Linear, log_size: Tensor, log_theta: Tensor, rows: Rows, *, gate: Linear | None = None) -> Tensor:
    r"""log p of counts whose log rates, and logits of a structural zero, are linear in features. Nats, summed over genes.

    The same as :func:`~trifold.dist.nb_log_prob` and :func:`~trifold.dist.zinb_log_prob` of :math:`W h + b`. On the CPU in float32 the
    gradient :math:`w_n \partial_{ng}` of the scores is never formed: the weight :math:`w_n` that each cell has in the loss multiplies the
    features, which are narrow, instead.

    Args:
        h: [n, h] features.
        rate: Weight [g, h] and bias [g] of the unnormalised log rates.
        log_size: [n, 1] log library size.
        log_theta: log inverse dispersion, [g] or [n, g].
        rows: n x g counts.
        gate: Weight [g, h] and bias [g] of the logits of a structural zero; None: there are none.

    Returns:
        [n] log-probabilities, with gradients in all but log_size.
    """
    parts = (h, *rate, log_theta, *(gate or ()))
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in parts)
    single = all(t.dtype == torch.float32 and t.device.type == "cpu" for t in parts)
    if wanted and single and not torch.is_autocast_enabled("cpu") and compiled():
        return _Features.apply(h, *rate, *(gate or (None, None)), log_size.float(), log_theta, rows)  # type: ignore[no-any-return]
    scores = linear(h, *rate)
    return (
        nb_log_prob(scores, log_size, log_theta, rows)
        if gate is None
        else zinb_log_prob(scores, log_size, log_theta, linear(h, *gate), rows)
    )


class _Features(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        weight: Tensor,
        bias: Tensor,
        gate_weight: Tensor | None,
        gate_bias: Tensor | None,
        log_size: Tensor,
        log_theta: Tensor,
        rows: Rows,
    ) -> Tensor:
        from trifold.dist.fused import split_fused

        logits = None if gate_weight is None else linear(h, gate_weight, gate_bias)
        out, d_scores, d_theta, d_gate = split_fused(linear(h, weight, bias), log_size, log_theta, logits, rows, grads=True, in_place=True)
        ctx.shared = log_theta.dim() == 1
        ctx.save_for_backward(h, weight, gate_weight, d_scores, d_theta, d_gate)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *up: Tensor) -> tuple[Tensor | None, ...]:
        h, weight, gate_weight, d_scores, d_theta, d_gate = ctx.saved_tensors
        w = up[0].contiguous()
        column = w.view(-1, 1)
        of_h, *of_rate = _of_linear(h, weight, d_scores, w, ctx.needs_input_grad[:3])
        of_gate: list[Tensor | None] = [None, None]
        if gate_weight is not None:
            more, *of_gate = _of_linear(h, gate_weight, d_gate, w, (ctx.needs_input_grad[0], *ctx.needs_input_grad[3:5]))
            of_h = None if of_h is None or more is None else of_h.add_(more)
        of_theta = ((w @ d_theta) if ctx.shared else column * d_theta) if ctx.needs_input_grad[6] else None
        return (None if of_h is None else of_h.mul_(column)), *of_rate, *of_gate, None, of_theta, None


def _of_linear(h: Tensor, weight: Tensor, slope: Tensor, w: Tensor, needed: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Gradients in h, still without w, in the weight and in the bias."""
    return (
        slope @ weight if needed[0] else None,
        slope.t() @ (h * w.view(-1, 1)) if needed[1] else None,
        w @ slope if needed[2] else None,
    )
