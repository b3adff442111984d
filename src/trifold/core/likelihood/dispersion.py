"""The inverse dispersion of counts: one per gene, or one per gene and condition."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import hardtanh, pad

from trifold.errors import SpecError, suggest
from trifold.records import Batch

DISPERSIONS = ("gene", "condition")
GAIN = 10.0  # the parameters are log theta / 10: the steps of an optimiser then move theta as fast as the data ask, not ten times slower
TYPICAL = 1.0  # log theta where training begins, and towards which genes with few counts are shrunk
_RANGE = (math.log(1e-4), math.log(1e6))


class Dispersion(nn.Module):
    """log inverse dispersion: a value per gene, and for ``"condition"`` each condition's departure from it.

    Args:
        genes: Number of genes g.
        kind: ``"gene"`` or ``"condition"``.
        conditions: Number of joint categories of ``role``; needed for ``"condition"``.
        role: Role of the schema whose category selects the departure. Unknown categories get none.

    Raises:
        SpecError: An unknown kind, or no conditions where they are needed.
    """

    def __init__(self, genes: int, kind: str, *, conditions: int, role: str):
        super().__init__()
        if kind not in DISPERSIONS:
            raise SpecError(f"dispersion needs one of {', '.join(map(repr, DISPERSIONS))}; found {kind!r}.{suggest(kind, DISPERSIONS)}")
        if kind == "condition" and conditions < 1:
            raise SpecError(
                f"dispersion='condition' needs the number of conditions; found {conditions}. "
                f"Pass conditions=len(schema.categories({role!r}))."
            )
        self.role = role
        self.shared = nn.Parameter(torch.full((genes,), TYPICAL / GAIN))
        self.departure = nn.Parameter(torch.zeros(conditions, genes)) if kind == "condition" else None

    def forward(self, batch: Batch) -> Tensor:
        """Log inverse dispersion, [g] or [n, g]."""
        log_theta = GAIN * self.shared
        if self.departure is None:
            return hardtanh(log_theta, *_RANGE)  # clamp, with a derivative of one pass
        table = hardtanh(log_theta + GAIN * pad(self.departure, (0, 0, 0, 1)), *_RANGE)  # the last row: categories that are unknown
        code = batch.code[self.role]
        return table.index_select(0, torch.where(code < 0, len(table) - 1, code))

    def distances(self) -> tuple[Tensor, Tensor]:
        """Two sums of squares of log theta: genes about what is typical, and conditions about their gene's own (0 without)."""
        own = (GAIN * self.shared - TYPICAL).square().sum()
        return own, own.new_zeros(()) if self.departure is None else (GAIN * self.departure).square().sum()
