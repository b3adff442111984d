"""Covariates of a batch as the networks take them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trifold.errors import ShapeError
from trifold.records import Batch


def joined(batch: Batch, roles: Sequence[str]) -> Tensor | None:
    """[n, c] designs of the roles side by side, or None when there are no roles.

    Raises:
        ShapeError: The batch lacks a role.
    """
    if not roles:
        return None
    missing = [r for r in roles if r not in batch.design]
    if missing:
        raise ShapeError(
            f"The model needs the role {missing[0]!r} in each batch; found {', '.join(batch.design) or 'none'}. "
            "Make batches with Cells(data, model.schema).batch(index)."
        )
    return batch.design[roles[0]] if len(roles) == 1 else torch.cat([batch.design[r] for r in roles], 1)


def row_of(batch: Batch, role: str, categories: int) -> Tensor:
    """[n] each cell's row of a table with one row per joint category of the role, and a last one for the unknown category.

    Raises:
        ShapeError: The batch lacks the role.
    """
    if role not in batch.code:
        raise ShapeError(
            f"The model needs the role {role!r} in each batch; found {', '.join(batch.code) or 'none'}. "
            "Make batches with Cells(data, model.schema).batch(index)."
        )
    code = batch.code[role]
    return torch.where(code < 0, torch.full_like(code, categories), code)
