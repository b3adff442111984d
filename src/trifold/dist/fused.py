"""The split count log-probability by the compiled CPU kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from trifold.compiled.counts import cells, genes
from trifold.compiled.threads import in_parts
from trifold.records import Rows


@torch.no_grad()
def split_fused(
    scores: Tensor, log_size: Tensor, log_theta: Tensor, dropout: Tensor | None, rows: Rows, *, grads: bool, in_place: bool = False
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Log-probabilities, and their derivatives if asked for. All float32, on the CPU; the bits do not depend on the number of threads.

    Args:
        scores: [n, g] unnormalised log rates.
        log_size: [n, 1] log library size.
        log_theta: log inverse dispersion, [g] or [n, g].
        dropout: [n, g] logits of a structural zero, or None.
        rows: n x g counts.
        grads: Whether the derivatives are needed.
        in_place: Whether the derivative in the scores may be written over them, and that in the logits over these.

    Returns:
        [n] nats, and [n, g] derivatives in scores, log_theta and dropout; None what is not needed or not there.
    """
    n, g = scores.shape
    scores, log_theta = scores.contiguous(), log_theta.contiguous().view(-1, g)
    gate = scores.new_empty(0, 0) if dropout is None else dropout.contiguous()
    crow, col, val = _csr(rows)
    out, none = scores.new_zeros(n), scores.new_empty(0, 0)
    d_scores = d_theta = d_gate = none
    if grads:
        d_scores, d_theta = scores if in_place else torch.empty_like(scores), torch.empty_like(scores)
        d_gate = gate if in_place or dropout is None else torch.empty_like(gate)
    tables, table = scores.new_empty(2, g).numpy(), torch.empty(3, g, dtype=torch.float64).numpy()
    if len(log_theta) == 1:
        genes(log_theta[0].numpy(), tables[0], tables[1], table)
    arrays = [t.detach().numpy() for t in (scores, log_size.reshape(-1), log_theta)]
    rest = [t.detach().numpy() for t in (gate, crow, col, val)]
    filled = [t.detach().numpy() for t in (out, d_scores, d_theta, d_gate)]

    def some(first: int, last: int) -> None:
        cells(first, last, *arrays, tables, table, *rest, grads, *filled)

    if n and g:
        in_parts(some, n, n * g)
    if not grads:
        return out, None, None, None
    return out, d_scores, d_theta, None if dropout is None else d_gate


def _csr(rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Contiguous crow and col (int64) and val (float32)."""
    if rows.sparse:
        crow, col, val = rows.csr()
        return crow.contiguous(), col.contiguous(), val.float().contiguous()
    dense = rows.to_dense()
    cell, gene = torch.nonzero(dense, as_tuple=True)
    crow = torch.zeros(dense.shape[0] + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(cell, minlength=dense.shape[0]), 0, out=crow[1:])
    return crow, gene.contiguous(), dense[cell, gene].float()
