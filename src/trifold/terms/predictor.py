"""``Predictor``: a role is to be predictable from a block, in every environment alike."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from trifold.errors import SpecError
from trifold.records import Pass
from trifold.terms.base import Term
from trifold.terms.blocks import category, sample
from trifold.terms.head import Head


def risks(loss: Tensor, member: Tensor) -> Tensor:
    """[] mean over environments of the mean over their cells; environments without cells are left out.

    Args:
        loss: [n] of each cell.
        member: [n, e] 1 where the cell counts for the environment.
    """
    count = member.sum(0)
    return ((loss @ member) / count.clamp_min(1)).sum() / (count > 0).sum().clamp_min(1)


def irm(logits: Tensor, code: Tensor, member: Tensor) -> Tensor:
    r"""Penalty of invariant risk minimisation: mean over environments of the squared derivative of the risk in a common factor. Nats².

    .. math:: \frac1E \sum_e \left( \frac{\partial}{\partial w} R_e(w \cdot \mathrm{logits}) \Big|_{w=1} \right)^2

    0 when no environment would gain from scaling the logits. The derivative of a cell's cross-entropy is
    :math:`g_i = \sum_k (\mathrm{softmax}_k - y_k)\,\mathrm{logit}_k`, and the square is estimated without bias from pairs of different
    cells, :math:`\frac{1}{m(m-1)} \sum_{i \ne j} g_i g_j`: below 0 by chance. Environments of one cell are left out.

    Args:
        logits: [n, k].
        code: [n] int64 category, 0 to k - 1.
        member: [n, e] 1 where the cell counts for the environment.

    Source: Arjovsky et al., arXiv 1907.02893, eq. IRMv1 (there the product of two half batches).
    """
    slope = ((logits.softmax(1) - one_hot(code, logits.shape[1])) * logits).sum(1)
    count = member.sum(0)
    pairs = ((slope @ member).square() - slope.square() @ member) / (count * (count - 1)).clamp_min(1)
    several = count >= 2
    return (pairs * several).sum() / several.sum().clamp_min(1)


class Predictor(Term):
    """Cross-entropy of predicting a role's category from a block, averaged within environments and then over them. Nats.

    Args:
        block: Name of the block that it reads; None: all of z.
        role: Role that it predicts. Cells of unknown category are left out.
        width: Number of columns of the block.
        categories: Number of joint categories of the role.
        hidden: Widths of the layers; (): linear.
        dropout: Probability of a zeroed activation in training.
        environment: Role whose categories are environments, each of which counts the same; cells of unknown environment are one more.
            None: all cells are one.
        environments: Number of joint categories of ``environment``.
        irm: Weight of the penalty of invariant risk minimisation, :func:`irm`.

    Raises:
        SpecError: A negative weight.

    Source: Aliee et al. 2023, the invariant predictor.
    """

    joint = True

    def __init__(
        self,
        block: str | None = "invariant",
        role: str = "label",
        *,
        width: int,
        categories: int,
        hidden: Sequence[int] = (),
        dropout: float = 0.0,
        environment: str | None = None,
        environments: int = 1,
        irm: float = 0.0,
    ):
        super().__init__()
        if irm < 0:
            raise SpecError(f"Predictor needs irm >= 0; found {irm}.")
        self.block = block
        self.role = role
        self.width = width
        self.categories = categories
        self.hidden = tuple(hidden)
        self.dropout = dropout
        self.environment = environment
        self.environments = environments
        self.irm = irm
        self.head = Head(width, categories, hidden=self.hidden, dropout=dropout)

    def forward(self, p: Pass) -> Tensor:
        """[] nats; 0 without a cell of known category."""
        code = category(p, self.role)
        logits = self.head(sample(p, self.block)).float()
        member = self._member(p, code).to(logits.dtype)
        value = risks(cross_entropy(logits, code.clamp_min(0), reduction="none"), member)
        return value if self.irm == 0 else value + self.irm * irm(logits, code.clamp_min(0), member)

    def logits(self, z: Tensor) -> Tensor:
        """[n, categories] for columns of the block, [n, width]."""
        return self.head(z)  # type: ignore[no-any-return]

    def _member(self, p: Pass, code: Tensor) -> Tensor:
        known = (code >= 0)[:, None]
        if self.environment is None:
            return known
        return one_hot(category(p, self.environment) + 1, self.environments + 1) * known
