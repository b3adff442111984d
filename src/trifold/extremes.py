"""Which cells of a minibatch a model explains worst, and by which genes: said when training stops."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trifold.core import VAE
from trifold.records import Batch

_CELLS = 3


def worst(vae: VAE, batch: Batch, cells: Sequence[str], genes: Sequence[str]) -> str:
    """A sentence that names the cells with the largest -log p(x | z, c), and for each the gene that adds most to it.

    Args:
        vae: On the CPU, with finite weights; it is read in evaluation mode, and left in the mode that it was in.
        batch: Some cells.
        cells, genes: [n] and [g] their names.
    """
    training = vae.training
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            p = vae.eval()(batch)
            nats = -vae.likelihood.distribution(p.h, batch).log_prob(batch.rows.to_dense())
    finally:
        vae.train(training)
    nats = torch.where(nats.isfinite(), nats, torch.inf)
    total = nats.sum(1)
    found = []
    for k in total.argsort(descending=True)[:_CELLS].tolist():
        gene = int(nats[k].argmax())
        found.append(f"{str(cells[k])!r} {float(total[k]):.3g} ({float(nats[k, gene]):.3g} of gene {str(genes[gene])!r})")
    median = float(total.median())
    return f"Of that minibatch, these cells fit worst with the weights put back, in nats (median {median:.3g}): {', '.join(found)}."
