"""The split count log-probability in plain PyTorch, for any device and type. The formulas are those of :mod:`trifold.dist.split`."""

from __future__ import annotations

import torch
from torch import Tensor

from trifold.dist.gamma import digamma_difference, nb_log_pmf
from trifold.records import Rows


@torch.no_grad()
def split_plain(
    scores: Tensor, log_size: Tensor, log_theta: Tensor, dropout: Tensor | None, rows: Rows, *, grads: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Log-probabilities, and their derivatives if asked for.

    Args:
        scores: [n, g] unnormalised log rates.
        log_size: [n, 1] log library size.
        log_theta: log inverse dispersion, [g] or [n, g].
        dropout: [n, g] logits of a structural zero, or None.
        rows: n x g counts.
        grads: Whether the derivatives are needed.

    Returns:
        [n] nats, and [n, g] derivatives in scores, log_theta and dropout; None what is not needed or not there.
    """
    index, gene, x = nonzeros(rows)
    x = x.to(scores.dtype)
    theta = log_theta.exp()
    log_mu = torch.log_softmax(scores, 1) + log_size
    log_ratio = log_mu - log_theta  # log(mu / theta)
    spread = torch.nn.functional.softplus(log_ratio)  # log(1 + mu / theta)
    at_zero = -theta * spread  # log p(0) of the negative binomial
    log_theta_x = log_theta[gene] if log_theta.dim() == 1 else log_theta.reshape(-1)[index]
    at_x = nb_log_pmf(x, log_mu.reshape(-1)[index], log_theta_x)
    dense, soft = at_zero, None
    if dropout is not None:
        soft = torch.nn.functional.softplus(dropout)
        dense = torch.logaddexp(dropout, at_zero) - soft
        at_x = at_x - soft.reshape(-1)[index]
    zero = x == 0  # stored all the same
    if not grads:
        return _put(dense, index, at_x, zero).sum(1), None, None, None

    f = torch.sigmoid(log_ratio)
    r_x, spread_x, f_x = (t.reshape(-1)[index] for t in (log_ratio, spread, f))
    theta_x = log_theta_x.exp()
    rest_x = x * torch.sigmoid(-r_x)  # x (1 - f), where 1 - f would round to nothing
    d_logmu, d_theta, d_dropout = -theta * f, (f - spread) * theta, None
    if dropout is not None:
        structural, gate = torch.sigmoid(dropout - at_zero), torch.sigmoid(dropout)
        d_dropout = _put(structural - gate, index, -gate.reshape(-1)[index], zero)
        d_logmu, d_theta = d_logmu * (1 - structural), d_theta * (1 - structural)
    d_logmu = _put(d_logmu, index, rest_x - theta_x * f_x, zero)
    d_theta = _put(d_theta, index, (digamma_difference(theta_x, x) + f_x - spread_x) * theta_x - rest_x, zero)
    d_scores = d_logmu - torch.softmax(scores, 1) * d_logmu.sum(1, keepdim=True)
    return _put(dense, index, at_x, zero).sum(1), d_scores, d_theta, d_dropout


def nonzeros(rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Flat index, gene and value of the nonzeros."""
    g = rows.shape[1]
    if rows.sparse:
        _, gene, x = rows.csr()
        return rows.row() * g + gene, gene, x
    dense = rows.to_dense()
    cell, gene = torch.nonzero(dense, as_tuple=True)
    return cell * g + gene, gene, dense[cell, gene]


def _put(whole: Tensor, index: Tensor, part: Tensor, zero: Tensor) -> Tensor:
    """The matrix, with its nonzeros replaced in place."""
    flat = whole.view(-1)
    flat.index_copy_(0, index, torch.where(zero, flat[index], part))
    return whole
