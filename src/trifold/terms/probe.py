"""An adversary that reads a block: what it can tell of a role, the encoder unlearns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trifold.errors import SpecError
from trifold.records import Pass
from trifold.terms.base import Term
from trifold.terms.blocks import category, sample, stratum
from trifold.terms.head import Head


def reverse(x: Tensor, strength: float = 1.0) -> Tensor:
    """x itself, whose gradient is multiplied by -strength on its way back."""
    return _Reverse.apply(x, strength)  # type: ignore[no-any-return]


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *up: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * up[0], None


class Probe(Term):
    """Cross-entropy of a classifier that predicts a role from a block, with the gradient reversed towards the encoder. Nats.

    The classifier is trained to lower the value, the encoder to raise it: at best it is the entropy of the role (given ``within``). The
    weight is that of both; ``strength`` is that of the encoder alone.

    Args:
        block: Name of the block that it reads.
        role: Role that it predicts. Cells of unknown category are left out.
        width: Number of columns of the block.
        categories: Number of joint categories of the role.
        within: Role that the classifier is told, so that only what the block says beyond it is unlearned (for confounded roles); or None.
        strata: Number of joint categories of ``within``.
        inferred: Cells whose category of ``within`` is unknown count as of the one that the block's prior finds likeliest; if the prior is
            a mixture of its own, all cells, and ``strata`` is the number of its components. Else they are told none.
        hidden: Widths of the classifier's layers; (): linear.
        strength: What the reversed gradient is multiplied by; 0: the encoder is left alone, and the term only measures.

    Raises:
        SpecError: A negative strength.

    Source: Ganin et al., JMLR 17 (2016).
    """

    joint = True

    def __init__(
        self,
        block: str = "invariant",
        role: str = "spurious",
        *,
        width: int,
        categories: int,
        within: str | None = None,
        strata: int = 1,
        inferred: bool = False,
        hidden: Sequence[int] = (64,),
        strength: float = 1.0,
    ):
        super().__init__()
        if strength < 0:
            raise SpecError(f"Probe needs strength >= 0; found {strength}.")
        self.block = block
        self.role = role
        self.width = width
        self.categories = categories
        self.within = within
        self.strata = strata
        self.inferred = inferred
        self.hidden = tuple(hidden)
        self.strength = strength
        self.head = Head(width, categories, hidden=self.hidden, covariates=0 if within is None else strata)

    def forward(self, p: Pass) -> Tensor:
        """[] nats, the mean over cells of known category; 0 without any."""
        code = category(p, self.role)
        known = code >= 0
        loss = torch.nn.functional.cross_entropy(self.logits(p).float(), code.clamp_min(0), reduction="none")
        return (loss * known).sum() / known.sum().clamp_min(1)

    def logits(self, p: Pass) -> Tensor:
        """[n, categories] of each cell."""
        z = reverse(sample(p, self.block), self.strength)
        if self.within is None:
            return self.head(z)  # type: ignore[no-any-return]
        told = stratum(p, self.within, block=self.block if self.inferred else None)
        return self.head(z, torch.nn.functional.one_hot(told + 1, self.strata + 1)[:, 1:].to(z.dtype))  # type: ignore[no-any-return]
