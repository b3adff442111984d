r"""Count log-probabilities split exactly into a dense part and a part at nonzeros, with closed-form gradients.

With :math:`\mu = L\,\mathrm{softmax}(s)`, inverse dispersion :math:`\theta` and :math:`f = \mu / (\theta + \mu)`:

.. math::
    \log p = \sum_g -\theta \log(1 + \mu/\theta)
           + \sum_{x > 0} x \log f + \ln\Gamma(x + \theta) - \ln\Gamma(\theta) - \ln\Gamma(x + 1)

The special functions are evaluated at the nonzeros only (5 to 25 % of the entries), and nothing but the gradient itself is kept for
the backward pass. Zero inflation splits the same way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trifold.dist.gamma import digamma_difference, nb_log_pmf
from trifold.records import Rows


def nb_log_prob(scores: Tensor, log_size: Tensor, log_theta: Tensor, rows: Rows) -> Tensor:
    r"""log p of counts under a negative binomial with mean L softmax(scores). Nats, summed over genes.

    Args:
        scores: [n, g] unnormalised log rates s.
        log_size: [n, 1] log library size, log L.
        log_theta: log inverse dispersion, [g] or [n, g].
        rows: n x g counts.

    Returns:
        [n] log-probabilities, with gradients in scores and log_theta.
    """
    return _Split.apply(scores.float(), log_size.float(), log_theta.float(), None, rows)  # type: ignore[no-any-return]


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
        [n] log-probabilities, with gradients in scores, log_theta and dropout.
    """
    return _Split.apply(scores.float(), log_size.float(), log_theta.float(), dropout.float(), rows)  # type: ignore[no-any-return]


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, log_size: Tensor, log_theta: Tensor, dropout: Tensor | None, rows: Rows) -> Tensor:
        g = scores.shape[1]
        index, gene, x = _nonzeros(rows)
        theta = log_theta.exp()
        share = torch.softmax(scores, 1)
        log_mu = torch.log_softmax(scores, 1) + log_size
        log_ratio = log_mu - log_theta  # log(mu / theta)
        spread = torch.nn.functional.softplus(log_ratio)  # log(1 + mu / theta)
        at_zero = -theta * spread  # log p(0) of the negative binomial
        f = torch.sigmoid(log_ratio)

        r_x, spread_x, f_x = (t.reshape(-1)[index] for t in (log_ratio, spread, f))
        log_theta_x = log_theta[gene] if log_theta.dim() == 1 else log_theta.reshape(-1)[index]
        theta_x = log_theta_x.exp()
        at_x = nb_log_pmf(x, log_mu.reshape(-1)[index], log_theta_x)
        rest_x = x * torch.sigmoid(-r_x)  # x (1 - f), where 1 - f would round to nothing
        d_logmu, d_theta = -theta * f, (f - spread).contiguous()
        d_logmu_x = rest_x - theta_x * f_x
        d_theta_x = digamma_difference(theta_x, x) - rest_x / theta_x + f_x - spread_x
        dense, d_dropout = at_zero, None
        if dropout is not None:
            structural = torch.sigmoid(dropout - at_zero)
            gate = torch.sigmoid(dropout)
            soft = torch.nn.functional.softplus(dropout)
            dense = torch.logaddexp(dropout, at_zero) - soft
            at_x = at_x - soft.reshape(-1)[index]
            d_dropout = structural - gate
            d_dropout.view(-1).index_copy_(0, index, -gate.reshape(-1)[index])
            d_logmu = d_logmu * (1 - structural)
            d_theta = d_theta * (1 - structural)
        for whole, part in ((dense, at_x), (d_logmu, d_logmu_x), (d_theta, d_theta_x)):
            whole.view(-1).index_copy_(0, index, part)
        out = dense.sum(1)
        d_scores = d_logmu - share * d_logmu.sum(1, keepdim=True)
        ctx.shared = log_theta.dim() == 1
        ctx.inflated = dropout is not None
        d_logtheta = d_theta * theta
        ctx.save_for_backward(d_scores, d_logtheta, *([d_dropout] if d_dropout is not None else []))
        ctx.g = g
        return out

    @staticmethod
    def backward(ctx: Any, *up: Tensor) -> tuple[Tensor | None, ...]:
        d_scores, d_logtheta, *rest = ctx.saved_tensors
        w = up[0].view(-1, 1)
        to_theta = (up[0] @ d_logtheta) if ctx.shared else w * d_logtheta
        return w * d_scores, None, to_theta, (w * rest[0] if ctx.inflated else None), None


def _nonzeros(rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Flat index, gene and value of the nonzeros."""
    g = rows.shape[1]
    if rows.sparse:
        _, gene, x = rows.csr()
        return rows.row() * g + gene, gene, x.float()
    dense = rows.to_dense()
    cell, gene = torch.nonzero(dense, as_tuple=True)
    return cell * g + gene, gene, dense[cell, gene].float()
