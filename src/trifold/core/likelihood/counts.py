"""Counts at a library size: negative binomial, zero-inflated negative binomial, Poisson."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from trifold.core.likelihood.base import Likelihood, output_layer
from trifold.core.likelihood.dispersion import Dispersion
from trifold.dist import NegativeBinomial as NegativeBinomialDistribution
from trifold.dist import ZeroInflated as ZeroInflatedDistribution
from trifold.dist import log_prob_of_features
from trifold.dist.transport import move_counts, move_zero_inflated
from trifold.records import Batch


class NegativeBinomial(Likelihood):
    r"""Counts with mean L softmax(W h + b) and variance :math:`\mu + \mu^2/\theta`.

    Args:
        features: Width h of the decoder's features.
        genes: Number of genes g.
        dispersion: Whether the inverse dispersion is one per ``"gene"``, or one per gene and ``"condition"``.
        conditions: Number of joint categories of ``role``; needed for ``"condition"``.
        role: Role of the schema whose category selects the inverse dispersion.

    Raises:
        SpecError: An unknown dispersion, or no conditions where they are needed.
    """

    kind = "counts"

    def __init__(self, features: int, genes: int, *, dispersion: str = "gene", conditions: int = 0, role: str = "condition"):
        super().__init__()
        self.features = features
        self.genes = genes
        self.dispersion = dispersion
        self.conditions = conditions
        self.role = role
        self.out = output_layer(features, genes)
        self.theta = Dispersion(genes, dispersion, conditions=conditions, role=role)

    @torch.no_grad()
    def start(self, mean: Tensor, var: Tensor) -> None:
        """Bias: the log of each gene's share of the counts."""
        self.out.bias.copy_(log_share(mean))

    def log_prob(self, h: Tensor, batch: Batch) -> Tensor:
        """[n] nats."""
        return log_prob_of_features(h, self.linear(), log_size(batch), self.theta(batch), batch.rows)

    def distribution(self, h: Tensor, batch: Batch) -> Distribution:
        """Negative binomial, [n, g]."""
        return NegativeBinomialDistribution(self.mean(h, batch), self.theta(batch).exp())

    def mean(self, h: Tensor, batch: Batch) -> Tensor:
        """[n, g] expected counts."""
        return torch.softmax(self.out(h).float(), 1) * size_of(batch)

    def information(self, h: Tensor, batch: Batch) -> Tensor:
        """[n, g] of the log rate."""
        mean, theta = self.mean(h, batch), self.theta(batch).exp()
        return mean * theta / (theta + mean)

    def transport(self, h: Tensor, target: Tensor, batch: Batch, under: Batch, *, generator: torch.Generator | None = None) -> Tensor:
        """Thinned where the rate falls, topped up from the cell's own gamma noise where it rises."""
        before, after = self.theta(batch).exp(), self.theta(under).exp()
        x = batch.rows.to_dense().float()
        return move_counts(x, self.mean(h, batch), self.mean(target, under), before, after, generator=generator)


class ZeroInflated(Likelihood):
    """A negative binomial with a second linear layer for the log odds of a structural zero.

    Args:
        features: Width h of the decoder's features.
        genes: Number of genes g.
        dispersion: Whether the inverse dispersion is one per ``"gene"``, or one per gene and ``"condition"``.
        conditions: Number of joint categories of ``role``; needed for ``"condition"``.
        role: Role of the schema whose category selects the inverse dispersion.

    Raises:
        SpecError: An unknown dispersion, or no conditions where they are needed.
    """

    kind = "counts"

    def __init__(self, features: int, genes: int, *, dispersion: str = "gene", conditions: int = 0, role: str = "condition"):
        super().__init__()
        self.features = features
        self.genes = genes
        self.dispersion = dispersion
        self.conditions = conditions
        self.role = role
        self.out = output_layer(features, genes)
        self.gate = output_layer(features, genes)
        nn.init.constant_(self.gate.bias, -2.0)  # few structural zeros to begin with
        self.theta = Dispersion(genes, dispersion, conditions=conditions, role=role)

    @torch.no_grad()
    def start(self, mean: Tensor, var: Tensor) -> None:
        """Bias: the log of each gene's share of the counts."""
        self.out.bias.copy_(log_share(mean))

    def log_prob(self, h: Tensor, batch: Batch) -> Tensor:
        """[n] nats."""
        gate = self.gate.weight, self.gate.bias
        return log_prob_of_features(h, self.linear(), log_size(batch), self.theta(batch), batch.rows, gate=gate)

    def distribution(self, h: Tensor, batch: Batch) -> Distribution:
        """Zero-inflated negative binomial, [n, g]."""
        base = NegativeBinomialDistribution(self._rate(h, batch), self.theta(batch).exp())
        return ZeroInflatedDistribution(base, self.gate(h).float())

    def information(self, h: Tensor, batch: Batch) -> Tensor:
        """[n, g] of the log rate, where there is no structural zero."""
        mean, theta = self._rate(h, batch), self.theta(batch).exp()
        return torch.sigmoid(-self.gate(h).float()) * mean * theta / (theta + mean)

    def transport(self, h: Tensor, target: Tensor, batch: Batch, under: Batch, *, generator: torch.Generator | None = None) -> Tensor:
        """Structural zeros are switched as rarely as their probabilities allow, the other counts move as a negative binomial's."""
        before, after = self.theta(batch).exp(), self.theta(under).exp()
        rates = self._rate(h, batch), self._rate(target, under)
        gates = self.gate(h).float(), self.gate(target).float()
        return move_zero_inflated(batch.rows.to_dense().float(), *rates, before, after, *gates, generator=generator)

    def _rate(self, h: Tensor, batch: Batch) -> Tensor:
        return torch.softmax(self.out(h).float(), 1) * size_of(batch)


class Poisson(Likelihood):
    """Counts with mean and variance L softmax(W h + b).

    Args:
        features: Width h of the decoder's features.
        genes: Number of genes g.
    """

    kind = "counts"

    def __init__(self, features: int, genes: int):
        super().__init__()
        self.features = features
        self.genes = genes
        self.out = output_layer(features, genes)

    @torch.no_grad()
    def start(self, mean: Tensor, var: Tensor) -> None:
        """Bias: the log of each gene's share of the counts."""
        self.out.bias.copy_(log_share(mean))

    def log_prob(self, h: Tensor, batch: Batch) -> Tensor:
        """[n] nats. The rates of a cell sum to its library size, so only the nonzeros are visited."""
        log_mean = torch.log_softmax(self.out(h).float(), 1) + log_size(batch)
        if batch.rows.sparse:
            _, gene, x = batch.rows.csr()
            cell = batch.rows.row()
            at = x * log_mean[cell, gene] - torch.lgamma(x + 1)
            return -size_of(batch).view(-1).index_add(0, cell, -at)
        x = batch.rows.to_dense().float()
        return (x * log_mean - torch.lgamma(x + 1)).sum(1) - size_of(batch).view(-1)

    def distribution(self, h: Tensor, batch: Batch) -> Distribution:
        """Poisson, [n, g]."""
        return PoissonDistribution(torch.softmax(self.out(h).float(), 1) * size_of(batch), validate_args=False)

    def information(self, h: Tensor, batch: Batch) -> Tensor:
        """[n, g] of the log rate: the rate."""
        return self.mean(h, batch)

    def transport(self, h: Tensor, target: Tensor, batch: Batch, under: Batch, *, generator: torch.Generator | None = None) -> Tensor:
        """Thinned where the rate falls, topped up where it rises."""
        x = batch.rows.to_dense().float()
        endless = torch.full((1,), math.inf, device=x.device)
        return move_counts(x, self.mean(h, batch), self.mean(target, under), endless, endless, generator=generator)


class PoissonDistribution(torch.distributions.Poisson):
    """torch's Poisson distribution, sampled from one's own generator."""

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size(), *, generator: torch.Generator | None = None) -> Tensor:  # type: ignore[override]  # noqa: B008
        """A draw."""
        return torch.poisson(self.rate.expand(self._extended_shape(sample_shape)), generator=generator)


def log_size(batch: Batch) -> Tensor:
    """[n, 1] log library size."""
    return torch.log(size_of(batch))


def size_of(batch: Batch) -> Tensor:
    """[n, 1] library size; an empty cell counts as one molecule, so that nothing becomes infinite."""
    return torch.where(batch.size > 0, batch.size, torch.ones_like(batch.size))


def log_share(mean: Tensor) -> Tensor:
    """[g] log share of each gene; one that never occurs gets a thousandth of an even share."""
    share = mean / mean.sum().clamp_min(1e-12)
    return torch.log(share + 1e-3 / len(mean))
