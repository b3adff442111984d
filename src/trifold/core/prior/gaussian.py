"""Gaussian priors: the standard normal, and one whose mean and variance depend on a role's category and numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Independent

from trifold.core.covariates import joined, row_of
from trifold.core.prior.base import Candidates, Prior
from trifold.dist import diagonal
from trifold.errors import SpecError, suggest
from trifold.records import Batch

LEARNED = ("mean", "variance", "both", "neither")
_SMALL = 0.01  # standard deviation of what an embedding begins with


class StandardNormal(Prior):
    """N(0, I), whatever the covariates.

    Args:
        latent: Number of latent dimensions d.
    """

    def __init__(self, latent: int):
        super().__init__()
        self.latent = latent

    def distribution(self, batch: Batch) -> Independent:
        """Batch [n], event [d]."""
        zero = torch.zeros(batch.n, self.latent, device=batch.size.device)
        return diagonal(zero, torch.ones_like(zero))

    def log_prob(self, z: Tensor, batch: Batch) -> Tensor:
        """[n] log N(z; 0, I), nats."""
        return self.distribution(batch).log_prob(z)


class ConditionalGaussian(Prior):
    r"""N(m(c), diag v(c)) with one table row per joint category of a role.

    .. math:: m = M_c + x^\top A, \quad \log v = V_c + x^\top B

    with c the category and x the role's numbers. With an embedding the tables are of low rank: :math:`M_c = (e_c, 1) M`, the same
    :math:`e_c` for both.

    Args:
        latent: Number of latent dimensions d.
        categories: Number of joint categories of the role.
        role: Role of the schema.
        learned: What training moves: ``"mean"``, ``"variance"``, ``"both"`` or ``"neither"``. The rest stays at mean 0 and variance 1.
        embedding: Width of a category's embedding, for roles of many categories (donors); 0: each has a row of its own.
        numbers: Columns of the role's design that hold standardised numbers, on which m and log v depend linearly.
        unknown: What a cell of unknown category gets: ``"normal"``: N(0, I); ``"mixture"``: the mean of all categories' distributions, so
            that cells without a label find their own.
        spread: Standard deviation of the means that training begins with; 0: all categories begin at 0.

    Raises:
        SpecError: An unknown choice of what is learned or of what is unknown, a negative width, column or spread, or a mixture with
            numbers.
    """

    def __init__(
        self,
        latent: int,
        categories: int,
        *,
        role: str,
        learned: str = "both",
        embedding: int = 0,
        numbers: Sequence[int] = (),
        unknown: str = "normal",
        spread: float = 0.0,
    ):
        super().__init__()
        if unknown not in ("normal", "mixture") or (unknown == "mixture" and numbers):
            raise SpecError(
                f"unknown needs 'normal' or, for a role without numbers, 'mixture'; found {unknown!r} and numbers={list(numbers)}. "
                "Pass unknown='normal'."
            )
        if spread < 0 or (spread > 0 and embedding):
            raise SpecError(
                f"ConditionalGaussian needs spread >= 0, and 0 with an embedding; found {spread} and embedding={embedding}. Pass spread=0."
            )
        if learned not in LEARNED:
            raise SpecError(f"learned needs one of {', '.join(map(repr, LEARNED))}; found {learned!r}.{suggest(learned, LEARNED)}")
        if embedding < 0 or any(k < 0 for k in numbers):
            raise SpecError(
                f"ConditionalGaussian needs embedding >= 0 and numbers >= 0; found embedding={embedding} and numbers={list(numbers)}."
            )
        self.latent = latent
        self.categories = categories
        self.role = role
        self.learned = learned
        self.embedding = embedding
        self.numbers = tuple(numbers)
        self.unknown = unknown
        self.spread = spread
        of_mean, of_variance = learned in ("mean", "both"), learned in ("variance", "both")
        rows = categories + 1  # the last row is the unknown category, which code -1 selects
        self.place = nn.Parameter(torch.randn(rows, embedding), requires_grad=learned != "neither") if embedding else None
        self.mean = nn.Parameter(self._begin(rows, of_mean, spread), requires_grad=of_mean)
        self.log_var = nn.Parameter(self._begin(rows, of_variance), requires_grad=of_variance)
        width = len(self.numbers)
        self.mean_slope = nn.Parameter(torch.zeros(width, latent), requires_grad=of_mean) if width else None
        self.log_var_slope = nn.Parameter(torch.zeros(width, latent), requires_grad=of_variance) if width else None
        self.register_buffer("known", torch.cat([torch.ones(categories, 1), torch.zeros(1, 1)]), persistent=False)

    def distribution(self, batch: Batch) -> Independent:
        """Batch [n], event [d]; N(0, I) for cells of unknown category, whatever they may be of (:meth:`candidates`)."""
        row = row_of(batch, self.role, self.categories)
        known = self.get_buffer("known")[row]
        mean = self._value(self.mean, self.mean_slope, row, batch)
        log_var = self._value(self.log_var, self.log_var_slope, row, batch)
        return diagonal(mean * known, torch.exp(0.5 * (log_var * known).clamp(-12, 12)))

    def log_prob(self, z: Tensor, batch: Batch) -> Tensor:
        """[n] log p(z | c), nats."""
        value = self.distribution(batch).log_prob(z)
        found = self.candidates(batch)
        return value if found is None else torch.where(batch.code[self.role] < 0, found.log_prob(z).logsumexp(1), value)

    def candidates(self, batch: Batch) -> Candidates | None:
        """All categories, with equal shares, for the cells of unknown category, if these may be of any."""
        if self.unknown == "normal":
            return None
        device = batch.size.device
        every = torch.arange(self.categories, device=device)
        mean, log_var = (self._value(table, None, every, batch)[None] for table in (self.mean, self.log_var))
        share = torch.full((self.categories,), -math.log(self.categories), device=device)
        return Candidates(diagonal(mean, torch.exp(0.5 * log_var.clamp(-12, 12))), share, batch.code[self.role])

    def carry(self, z: Tensor, batch: Batch, under: Batch) -> Tensor:
        """[n, d] (z - m(c)) / s(c) s(c') + m(c'), which carries N(m, s²) of the one category to that of the other."""
        here, there = self.distribution(batch), self.distribution(under)
        moved = (z - here.mean) / here.stddev * there.stddev + there.mean
        return torch.where((here.mean == there.mean) & (here.stddev == there.stddev), z, moved)  # staying is exact

    @property
    def roles(self) -> tuple[str, ...]:
        """The role."""
        return (self.role,)

    def _begin(self, rows: int, learned: bool, spread: float = 0.0) -> Tensor:
        if not self.embedding:
            return spread * torch.randn(rows, self.latent) if spread else torch.zeros(rows, self.latent)
        # not zero where it is learned, or the embeddings would get no gradient
        return (_SMALL if learned else 0.0) * torch.randn(self.embedding + 1, self.latent)

    def _value(self, table: Tensor, slope: Tensor | None, row: Tensor, batch: Batch) -> Tensor:
        value = table[row] if self.place is None else nn.functional.pad(self.place[row], (0, 1), value=1.0) @ table
        if slope is None:
            return value
        design = joined(batch, (self.role,))
        return value + design[:, list(self.numbers)] @ slope  # type: ignore[index]
