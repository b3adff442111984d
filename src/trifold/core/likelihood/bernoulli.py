"""Zeros and ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from trifold.core.likelihood.base import Likelihood, output_layer
from trifold.records import Batch


class BernoulliDistribution(torch.distributions.Bernoulli):
    """torch's Bernoulli distribution, sampled from one's own generator."""

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size(), *, generator: torch.Generator | None = None) -> Tensor:  # type: ignore[override]  # noqa: B008
        """A draw."""
        return torch.bernoulli(self.probs.expand(self._extended_shape(sample_shape)), generator=generator)


class Bernoulli(Likelihood):
    """Values in {0, 1} with log odds W h + b.

    Args:
        features: Width h of the decoder's features.
        genes: Number of genes g.
    """

    kind = "binary"

    def __init__(self, features: int, genes: int):
        super().__init__()
        self.features = features
        self.genes = genes
        self.out = output_layer(features, genes)

    @torch.no_grad()
    def start(self, mean: Tensor, var: Tensor) -> None:
        """Bias: the log odds of a one."""
        self.out.bias.copy_(torch.logit(mean.clamp(1e-3, 1 - 1e-3)))

    def log_prob(self, h: Tensor, batch: Batch) -> Tensor:
        """[n] nats: -softplus(logit) everywhere, plus the logit at ones."""
        logits = self.out(h).float()
        dense = -nn.functional.softplus(logits).sum(1)
        if batch.rows.sparse:
            _, gene, x = batch.rows.csr()
            cell = batch.rows.row()
            return dense.index_add(0, cell, x * logits[cell, gene])
        return dense + (batch.rows.to_dense().float() * logits).sum(1)

    def distribution(self, h: Tensor, batch: Batch) -> Distribution:
        """Bernoulli, [n, g]."""
        return BernoulliDistribution(logits=self.out(h).float(), validate_args=False)

    def information(self, h: Tensor, batch: Batch) -> Tensor:
        """[n, g] of the log odds: p (1 - p)."""
        p = self.mean(h, batch)
        return p * (1 - p)

    def transport(self, h: Tensor, target: Tensor, batch: Batch, under: Batch, *, generator: torch.Generator | None = None) -> Tensor:
        """Flips as few values as the two probabilities allow."""
        p, q = self.mean(h, batch), self.mean(target, under)
        x = batch.rows.to_dense().float()
        stay = torch.where(x > 0, (q / p.clamp_min(1e-12)).clamp(max=1), ((1 - q) / (1 - p).clamp_min(1e-12)).clamp(max=1))
        kept = torch.bernoulli(stay, generator=generator)
        return torch.where(kept > 0, x, 1 - x)
