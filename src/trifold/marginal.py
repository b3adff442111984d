"""Answers for cells whose covariates are unknown: averages over the known categories, weighted by their share of the training cells."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from trifold.core import VAE
from trifold.data import Cells, Schema
from trifold.data.columns import Number
from trifold.data.reading import batches
from trifold.errors import FormatError
from trifold.inference import Inference, cut, step_of, values_of
from trifold.records import Batch
from trifold.results import Result

_WINDOW = 4  # pieces within which cells that lack the same roles are gathered


@dataclass(frozen=True, eq=False)
class Filling:
    """The categories that stand in for an unknown role, [k] of them.

    Args:
        role: Of the schema.
        design: [k, c] of each joint category.
        code: [k].
        share: [k] of the training cells, sums to 1.
    """

    role: str
    design: Tensor
    code: Tensor
    share: Tensor

    def put(self, batch: Batch, at: int | Tensor) -> Batch:
        """The batch with every cell's role at one category, or at one each, [n]."""
        index = torch.as_tensor(at, device=self.code.device).expand(batch.n)
        design, code = self.design[index].to(batch.size.device), self.code[index].to(batch.size.device)
        return batch.under(code={self.role: code}, **{self.role: design})


def shares(card: Mapping[str, Any], role: str) -> Tensor:
    """[k] share of each joint category of a role in the training cells, float32.

    Raises:
        FormatError: The run was written before they were kept.
    """
    if role not in card.get("counts", {}):
        raise FormatError(
            f"To average over {role!r} needs the shares of its categories, which fit keeps; this run was written by an older trifold, "
            "without "
            "them. Train it again with fit(data)."
        )
    counts = torch.tensor(card["counts"][role], dtype=torch.float32)
    return counts / counts.sum() if counts.sum() > 0 else torch.full_like(counts, 1 / max(1, len(counts)))


def fillings(schema: Schema, card: Mapping[str, Any], policy: Mapping[str, str], seen: Sequence[str]) -> list[Filling]:
    """What stands in for each role that is to be averaged over and that the model sees.

    Args:
        schema: Of the training data.
        card: Of the run: shares of the categories.
        policy: role -> ``"error"``, ``"zero"`` or ``"marginalise"``.
        seen: Roles on which the answer depends.
    """
    found = []
    for role in schema.roles:
        if policy.get(role) == "marginalise" and role in seen and len(schema.categories(role)):
            design, code = schema.combinations(role)
            found.append(Filling(role, torch.from_numpy(design), torch.from_numpy(code), shares(card, role)))
    return found


def moved_fillings(schema: Schema, found: Sequence[Filling], to: Mapping[str, Any]) -> list[Filling]:
    """The same categories with some of their columns at a target's values."""
    import pandas as pd

    out = []
    for filling in found:
        columns = schema.roles[filling.role]
        here = {column.name: to[column.name] for column in columns if column.name in to}
        if here:
            named = [c.name for c in columns if not isinstance(c, Number)]
            table = pd.DataFrame(schema.categories(filling.role), columns=named, index=range(len(filling.code)), dtype=object)
            numbers = {c.name: c.mean for c in columns if isinstance(c, Number)}
            obs = schema.under(table.assign(**numbers), here)
            design, code = schema.covariates(obs, [filling.role], unknown="zero")
            filling = replace(filling, design=torch.from_numpy(design[filling.role]), code=torch.from_numpy(code[filling.role]))
        out.append(filling)
    return out


def sees(vae: VAE, schema: Schema, *, decoded: bool = False, told: str | None = None, to: Mapping[str, Any] | None = None) -> list[str]:
    """Roles on which a cell's place depends, and, where it is decoded, on which its expression does.

    Args:
        vae: The model. Parts that do not say which roles they see may see all.
        schema: Of the training data.
        decoded: Whether the decoder is asked.
        told: Role that the decoder is told in any case.
        to: column -> value, if the prior moves cells there.
    """
    encoder = getattr(vae.posterior, "blocks", None)
    parts: list[Any] = list(encoder.values()) if encoder else [vae.posterior]
    if vae.refine:
        parts.append(vae.decoder)
    roles = {role for part in parts for role in getattr(part, "roles", schema.roles)}
    if decoded:
        roles |= {role for role in getattr(vae.decoder, "roles", schema.roles) if role != told}
    if vae.refine:
        roles |= set(vae.prior.roles)
    roles |= {role for role in vae.prior.roles for column in schema.roles.get(role, ()) if column.name in (to or {})}
    if decoded and getattr(vae.likelihood, "dispersion", "gene") == "condition" and vae.likelihood.role != told:
        roles.add(vae.likelihood.role)  # type: ignore[arg-type]
    return [role for role in schema.roles if role in roles]


def groups(cells: Cells, index: np.ndarray, found: Sequence[Filling]) -> Iterator[tuple[list[Filling], np.ndarray]]:
    """The cells that lack the same roles: ([those roles' fillings], [m] positions in ``index``), cells that lack none first."""
    if not found:
        yield [], np.arange(len(index))
        return
    lacking = np.zeros(len(index), dtype=np.int64)
    for bit, filling in enumerate(found):
        lacking |= (cells.code[filling.role][index] < 0).astype(np.int64) << bit
    for pattern in np.unique(lacking):
        yield [f for bit, f in enumerate(found) if pattern >> bit & 1], np.flatnonzero(lacking == pattern)


def ways(found: Sequence[Filling]) -> Iterator[tuple[float, tuple[int, ...]]]:
    """(weight, position in each filling) of every joint choice that has a weight; without fillings, one choice of nothing."""
    for choice in itertools.product(*(range(len(f.code)) for f in found)):
        weight = float(np.prod([float(f.share[j]) for f, j in zip(found, choice, strict=True)]))
        if weight > 0:
            yield weight, choice


def average(found: Sequence[Filling], f: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
    """[n, ...] f of the batch, averaged over every choice of what it lacks."""
    if not found:
        return f(batch)
    total: Any = 0.0
    for weight, choice in ways(found):
        filled = batch
        for filling, at in zip(found, choice, strict=True):
            filled = filling.put(filled, at)
        total = total + weight * f(filled)
    return total  # type: ignore[no-any-return]


def collect(
    network: nn.Module,
    cells: Cells,
    f: Callable[[Batch], Tensor],
    found: Sequence[Filling],
    device: torch.device,
    into: Result,
    *,
    decoded: bool = True,
) -> None:
    """F of all cells, [n, ...] float32, put in order; averages where a cell lacks a role that is to be averaged over.

    Args:
        network: What f asks.
        cells: All of them are read once, some at a time.
        f: Some cells, on the device -> [k, ...].
        found: What stands in for unknown roles.
        device: Where.
        into: What takes the rows.
        decoded: Whether f decodes.
    """
    with Inference(network, device) as there:
        step = step_of(values_of(cells, decoded=decoded))
        stream(cells, np.arange(cells.n), found, into, lambda batch, _, lacking: average(lacking, f, batch.to(there)).float(), step)


class Piece(NamedTuple):
    """Cells that are asked together.

    Args:
        at: [k] their positions among the cells asked for.
        lacking: Fillings of the roles that they lack.
        first, size: The window that they are of: where it begins, and how many cells it holds.
        last: Whether they are its last.
    """

    at: np.ndarray
    lacking: list[Filling]
    first: int
    size: int
    last: bool


def pieces(cells: Cells, index: np.ndarray, found: Sequence[Filling], step: int) -> Iterator[Piece]:
    """The cells in windows, in order, and in each those that lack the same roles together, so many at a time."""
    size = step * (_WINDOW if found else 1)
    for first in range(0, len(index), size):
        window = index[first : first + size]
        here = [(lacking, some) for lacking, members in groups(cells, window, found) for some in cut(members, step)]
        for k, (lacking, some) in enumerate(here):
            yield Piece(first + some, lacking, first, len(window), k == len(here) - 1)


def stream(
    cells: Cells,
    index: np.ndarray,
    found: Sequence[Filling],
    into: Result,
    f: Callable[[Batch, np.ndarray, list[Filling]], Tensor],
    step: int,
) -> None:
    """F of some cells, put in order. Cells on disk are read ahead.

    Args:
        cells: Of the answer.
        index: [n] positions of the cells asked for.
        found: What stands in for unknown roles. Cells that lack the same are asked together, within a window of four pieces.
        into: What takes the rows.
        f: (some cells, their [k] positions in ``index``, fillings of the roles that they lack) -> [k, ...].
        step: Cells at a time.
    """
    asked, read = itertools.tee(pieces(cells, index, found, step))
    rows: Any = None
    with closing(batches(cells, (index[piece.at] for piece in read))) as ahead:  # type: ignore[type-var]
        for piece, batch in zip(asked, ahead, strict=True):
            values = f(batch, piece.at, piece.lacking).cpu().numpy()
            if len(values) == piece.size:
                rows = values
            else:
                rows = np.empty((piece.size, *values.shape[1:]), dtype=values.dtype) if rows is None else rows
                rows[piece.at - piece.first] = values
            if piece.last:
                for start in range(0, piece.size, step):
                    into.put(rows[start : start + step])
                rows = None


def hidden(batch: Batch, roles: Sequence[str]) -> Batch:
    """The batch with some roles unknown: zeros, and the code -1."""
    there = [role for role in roles if role in batch.code]
    code = {role: torch.full_like(batch.code[role], -1) for role in there}
    return batch.under(code=code, **{role: torch.zeros_like(batch.design[role]) for role in there})
