"""Real values with Gaussian noise: of fixed variance, one learned for all genes, one per gene, or one per cell and gene."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from trifold.core.likelihood.base import Likelihood, output_layer
from trifold.errors import SpecError, suggest
from trifold.records import Batch

VARIANCES = ("fixed", "shared", "gene", "cell")


class Normal(torch.distributions.Normal):
    """torch's normal distribution, sampled from one's own generator."""

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size(), *, generator: torch.Generator | None = None) -> Tensor:  # type: ignore[override]  # noqa: B008
        """A draw."""
        mean = self.loc.expand(self._extended_shape(sample_shape))
        return mean + self.scale * torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)


class Gaussian(Likelihood):
    """x = W h + b + noise, in the units of x.

    Args:
        features: Width h of the decoder's features.
        genes: Number of genes g.
        variance: ``"fixed"``, ``"shared"`` (learned, one for all), ``"gene"`` (learned, one per gene) or ``"cell"`` (a second linear
            layer: one per cell and gene).
        value: The fixed variance, or where the learned one starts. Squared units of x.
        nonnegative: Clip the mean at zero, as published trVAE does on log-normalised values.

    Raises:
        SpecError: An unknown variance, or one that is not positive.
    """

    kind = "real"

    def __init__(self, features: int, genes: int, *, variance: str = "gene", value: float = 1.0, nonnegative: bool = False):
        super().__init__()
        if variance not in VARIANCES:
            raise SpecError(f"variance needs one of {', '.join(map(repr, VARIANCES))}; found {variance!r}.{suggest(variance, VARIANCES)}")
        if not value > 0:
            raise SpecError(
                f"Gaussian needs value, a variance, above zero; found {value}. "
                "Pass value=1.0, or variance='gene' to learn one for each gene."
            )
        self.features = features
        self.genes = genes
        self.variance = variance
        self.value = value
        self.nonnegative = nonnegative
        self.out = output_layer(features, genes)
        self.log_var = _learned({"shared": 1, "gene": genes}.get(variance, 0), value)
        self.spread = nn.Linear(features, genes) if variance == "cell" else None
        if self.spread is not None:
            nn.init.zeros_(self.spread.weight)
            nn.init.constant_(self.spread.bias, math.log(value))

    @torch.no_grad()
    def start(self, mean: Tensor, var: Tensor) -> None:
        """Bias: the mean. Learned variances: the data's, at least a thousandth of their average."""
        self.out.bias.copy_(mean)
        log_var = torch.log(var.clamp_min(1e-3 * float(var.mean()) + 1e-8))
        if self.log_var is not None:
            self.log_var.copy_(log_var if self.variance == "gene" else var.mean().clamp_min(1e-8).log())
        if self.spread is not None:
            self.spread.bias.copy_(log_var)

    def mean(self, h: Tensor, batch: Batch) -> Tensor:
        """[n, g] expected value."""
        mean = self.out(h).float()
        return torch.relu(mean) if self.nonnegative else mean

    def distribution(self, h: Tensor, batch: Batch) -> Distribution:
        """Normal, [n, g]."""
        mean = self.mean(h, batch)
        return Normal(mean, self._scale(h).expand_as(mean), validate_args=False)

    def log_prob(self, h: Tensor, batch: Batch) -> Tensor:
        """[n] nats."""
        error = (batch.rows.to_dense().float() - self.mean(h, batch)) ** 2
        log_var = 2 * torch.log(self._scale(h))
        if self.variance == "cell":
            total = (error * torch.exp(-log_var) + log_var).sum(1)
        else:
            total = error @ torch.exp(-log_var).expand(self.genes) + log_var.expand(self.genes).sum()
        return -0.5 * (total + self.genes * math.log(2 * math.pi))

    def information(self, h: Tensor, batch: Batch) -> Tensor:
        """[1, g] inverse variance; [n, g] where it is one per cell."""
        inverse = 1 / self._scale(h).square()
        return inverse if self.variance == "cell" else inverse.expand(1, self.genes)

    def transport(self, h: Tensor, target: Tensor, batch: Batch, under: Batch, *, generator: torch.Generator | None = None) -> Tensor:
        """x + g(z, s') - g(z, s), with the residual scaled by the ratio of the standard deviations."""
        residual = batch.rows.to_dense().float() - self.mean(h, batch)
        return self.mean(target, under) + residual * (self._scale(target) / self._scale(h))

    def _scale(self, h: Tensor) -> Tensor:
        if self.spread is not None:
            return torch.exp(0.5 * self.spread(h).float().clamp(-12, 12))
        if self.log_var is not None:
            return torch.exp(0.5 * self.log_var.clamp(-12, 12))
        return torch.full((1,), math.sqrt(self.value), device=h.device)


def _learned(count: int, value: float) -> nn.Parameter | None:
    return nn.Parameter(torch.full((count,), math.log(value))) if count else None
