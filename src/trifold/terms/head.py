"""What a term predicts categories with: a linear layer, or a multilayer perceptron before it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from trifold.nets import MLP


class Head(nn.Module):
    """Latent columns (and covariates) -> logits.

    Args:
        width: Number of latent columns.
        categories: Number of logits.
        hidden: Widths of the layers; (): linear.
        covariates: Width of what is seen beside the latent.
        dropout: Probability of a zeroed activation in training.
    """

    def __init__(self, width: int, categories: int, *, hidden: Sequence[int] = (), covariates: int = 0, dropout: float = 0.0):
        super().__init__()
        self.network = MLP(width, hidden, covariates=covariates, dropout=dropout)
        self.out = nn.Linear(self.network.width, categories)

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """[n, categories] logits."""
        return self.out(self.network(z, c))
