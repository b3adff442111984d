"""The cells of a source as a model reads them: genes in the schema's order, covariates as numbers, minibatches as ``Batch``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from trifold.data.align import align
from trifold.data.check import EMPTY, Findings, check, require_names, require_option
from trifold.data.covariates import absent, design_of, policies, sizes
from trifold.data.matrix import Array, csr
from trifold.data.schema import Schema
from trifold.data.source import Source, open, positions
from trifold.errors import DataError, TrifoldWarning, listing, suggest
from trifold.records import Batch, Rows

_NARROW = 1 << 22  # numbers up to which the design of all cells is kept


class Cells:
    """The cells of a source under a schema. Values are looked at once; covariates are encoded once.

    Args:
        source: A Source, or anything else that :func:`trifold.data.open` takes.
        schema: Of the training data. Genes are matched to it by name: reordered, extra ones left out with a notice.
        unknown: Unseen or missing covariates and absent columns: ``"error"``, ``"zero"``, ``"marginalise"``, or role -> policy.
        missing: Genes that the source lacks: ``"error"`` or ``"zero"``.
        empty: Cells without a count: ``"error"``, ``"drop"`` or ``"keep"``; None: as in the schema.
        checked: Findings of this very source under the schema's genes, so that its values are not looked at again.

    Attributes:
        n: Number of cells.
        schema: As given.
        obs: [n, columns] covariates as they came.
        names: [n] names of the cells.
        kept: [n] position of each cell in the source; not all of them only if empty cells were dropped, or in a subset.
        size: [n, 1] float32 library size in counts, from float64 sums; ones for real-valued and binary data.
        library: [n] float64 sum over the schema's genes.
        code: role -> [n] int64 joint category, -1 unknown.
        unknown: role -> policy, for each role of the schema. ``"marginalise"`` asks the model to average where code is -1; the arrays are
            those of ``"zero"``.
        notices: What was dropped or filled in, one sentence each.

    Raises:
        DataError, SchemaError: Values, genes or covariates that do not fit the schema.
    """

    def __init__(
        self,
        source: Any,
        schema: Schema,
        *,
        unknown: str | Mapping[str, str] = "error",
        missing: str = "error",
        empty: str | None = None,
        checked: Findings | None = None,
    ):
        empty = schema.empty if empty is None else empty
        require_option("empty", empty, EMPTY)
        opened = source if isinstance(source, Source) else open(source, schema.x)
        require_names(opened)
        aligned, notices = align(opened, schema.genes, missing=missing)
        found = checked if checked is not None else check(aligned)
        if found.shape != (aligned.n, len(schema.genes)):
            raise DataError(f"checked= describes {found.shape} values but these cells have {(aligned.n, len(schema.genes))}. Leave it out.")
        found.require(schema.kind, fractional=schema.fractional, empty=empty)
        size = _library_sizes(opened.obs, schema, found)
        kept = np.arange(aligned.n)
        if schema.kind == "counts" and empty == "drop" and len(found.empty_cells):
            kept = np.flatnonzero(found.filled_cells)
            gone = f"{len(found.empty_cells)} of {aligned.n} cells of {found.where} have no count"
            notices.append(f"{gone} and are left out: rows {listing(found.empty_cells)}.")
            warnings.warn(notices[-1], TrifoldWarning, stacklevel=2)
            if not len(kept):
                raise DataError(
                    f"{found.where} must hold counts in some cell; none of its {aligned.n} cells has any. Pass x=<layer with counts>."
                )
        whole = len(kept) == aligned.n
        self.schema, self.kept = schema, kept
        self.obs: pd.DataFrame = opened.obs if whole else opened.obs.iloc[kept]
        self.size: Array = size[kept]
        self.library: Array = found.library[kept]
        policy = policies(unknown)
        self.unknown: dict[str, str] = {role: policy[role] for role in schema.roles}
        self.code: dict[str, Array] = {}
        self._parts: dict[str, list[Array]] = {}
        self._designs: dict[str, Array] = {}  # of narrow roles, once asked for
        for role, columns in schema.roles.items():
            self._parts[role], self.code[role] = schema.encoded(self.obs, role, policy[role])
            for name in absent(self.obs, columns, role, policy[role]) if role != "label" else ():
                gone = f"obs has no column {name!r} ({role}), which is taken as unknown for all {self.n} cells."
                notices.append(gone + suggest(name, self.obs.columns))
                warnings.warn(notices[-1], TrifoldWarning, stacklevel=2)
        self.notices = tuple(notices)
        self._source = aligned

    @property
    def n(self) -> int:
        """Number of cells."""
        return len(self.kept)

    @property
    def names(self) -> Array:
        """[n] names of the cells."""
        return np.asarray(self.obs.index)

    def counts(self, role: str) -> Array:
        """[k] int64 cells of each joint combination, in the order of ``schema.categories(role)``; unknown ones are not counted."""
        code = self.code.get(role, np.zeros(0, dtype=np.int64))
        return np.bincount(code[code >= 0], minlength=len(self.schema.categories(role))).astype(np.int64)

    @property
    def design(self) -> dict[str, Array]:
        """Role -> [n, c] float32 design of all cells; made when asked for, since many categories times many cells is large."""
        return {r: design_of(p, self.schema.roles[r]) for r, p in self._parts.items()}

    @property
    def block(self) -> int | None:
        """Neighbouring cells that are best read together, for :class:`Shuffled`; None in memory."""
        return self._source.block

    @property
    def window(self) -> int:
        """Cells that are best read together, for :class:`Shuffled` and :func:`trifold.data.reading.batches`."""
        return self._source.window

    @property
    def width(self) -> float:
        """Values that the source stores for a cell, on average."""
        return self._source.width

    def stored(self, index: Array) -> int:
        """How many values the source stores for some cells: what reading them costs."""
        return self._source.stored(self.kept[index])

    def values(self, index: Array) -> Any:
        """[k, g] values of some cells as the source gives them, CSR or dense, in the order asked for; :meth:`assemble` makes batches of
        them.

        Args:
            index: [k] positions in these cells, from 0.

        Raises:
            DataError: A position outside the cells, or a file that is damaged there.
        """
        return self._source.take(self.kept[positions(index, self.n)])

    def batch(self, index: Sequence[int] | Array, device: torch.device | str = "cpu") -> Batch:
        """Some cells as a minibatch, in the order asked for.

        Args:
            index: [k] positions in these cells, from 0.
            device: Where the tensors go.

        Raises:
            DataError: A position outside the cells.
        """
        index = positions(index, self.n)
        batch = self.assemble(self._source.take(self.kept[index]), index)
        return batch if torch.device(device).type == "cpu" else batch.to(device)

    def assemble(self, values: Any, index: Array, start: int = 0) -> Batch:
        """A minibatch of values that were read before.

        Args:
            values: [m, g] as :meth:`values` gives them, or their ``Rows``, of which minibatches are cut without a copy.
            index: [k] int64 positions of the cells, whose values are the rows of ``values`` from ``start``.
            start: The first of those rows.
        """
        if isinstance(values, Rows):
            rows = values.between(start, start + len(index))
        else:
            rows = rows_of(values, sparse=self.schema.sparse, within=slice(start, start + len(index)))
        return Batch(
            rows=rows,
            size=torch.from_numpy(self.size.take(index, 0)),
            design={r: torch.from_numpy(self._design_at(r, index)) for r in self._parts},
            code={r: torch.from_numpy(v.take(index)) for r, v in self.code.items()},
        )

    def _design_at(self, role: str, index: Array) -> Array:
        """[k, c] float32 design of some cells; a narrow one is made for all cells once, a wide one anew for each minibatch."""
        columns = self.schema.roles[role]
        if role not in self._designs and self.n * sum(c.width for c in columns) <= _NARROW:
            self._designs[role] = design_of(self._parts[role], columns)
        made = self._designs.get(role)
        return design_of(self._parts[role], columns, index) if made is None else made.take(index, 0)

    def subset(self, index: Sequence[int] | Array) -> Cells:
        """Some of these cells, in the order asked for, sharing the source. ``kept`` still counts in the source.

        Args:
            index: [k] positions in these cells, from 0.
        """
        index = positions(index, self.n)
        out = object.__new__(Cells)
        out.__dict__.update(self.__dict__)
        out.kept, out.obs = self.kept[index], self.obs.iloc[index]
        out.size, out.library = self.size[index], self.library[index]
        out._designs = {}
        out._parts = {r: [v[index] for v in p] for r, p in self._parts.items()}
        out.code = {r: v[index] for r, v in self.code.items()}
        return out


def encode(
    schema: Schema,
    rows: Any,
    obs: pd.DataFrame,
    *,
    unknown: str | Mapping[str, str] = "error",
    size: Array | None = None,
    device: torch.device | str = "cpu",
) -> Batch:
    """A minibatch from values and covariates; a pure function.

    Args:
        schema: Of the training data.
        rows: [n, g] array or scipy sparse matrix, genes in the schema's order. Not looked at for faults: :class:`Cells` does that.
        obs: [n, columns].
        unknown: Unseen or missing covariates and absent columns: ``"error"``, ``"zero"``, ``"marginalise"``, or role -> policy.
        size: [n] library sizes in counts; None: the schema's column, or the sum over genes in float64 (1 for a cell without a count).
        device: Where the tensors go.

    Raises:
        DataError: Rows of another shape than [len(obs), genes].
        SchemaError: Covariates that do not fit the schema.
    """
    if tuple(rows.shape) != (len(obs), len(schema.genes)):
        raise DataError(
            f"rows must have the shape {(len(obs), len(schema.genes))}, rows of obs x genes of the schema; found {tuple(rows.shape)}. "
            "Pass the obs of these rows, and the columns in the order of schema.genes."
        )
    block: Any = rows.tocsr() if sp.issparse(rows) else np.asarray(rows)
    if sp.issparse(block) and not block.has_canonical_format:
        block = block.copy()
        block.sum_duplicates()
    if schema.kind != "counts":
        size = np.ones(len(obs))
    elif size is None:
        size = sizes(obs, schema.size) if schema.size else np.asarray(block.sum(1, dtype=np.float64)).reshape(-1)
        size = np.where(size > 0, size, 1.0)
    design, code = schema.covariates(obs, unknown=unknown)
    batch = Batch(
        rows=rows_of(block, sparse=schema.sparse),
        size=torch.from_numpy(np.asarray(size, dtype=np.float32).reshape(-1, 1)),
        design={r: torch.from_numpy(v) for r, v in design.items()},
        code={r: torch.from_numpy(v) for r, v in code.items()},
    )
    return batch.to(device)


def rows_of(block: Any, *, sparse: bool, within: slice | None = None) -> Rows:
    """Rows of a canonical CSR matrix or an array, float32; equal values give equal rows, whichever form they come in.

    Args:
        block: [n, g].
        sparse: Whether the rows are to be sparse.
        within: Some of the rows, from start to stop; None: all.
    """
    start, stop = (0, int(block.shape[0])) if within is None else (within.start, within.stop)
    shape = (stop - start, int(block.shape[1]))
    if not sp.issparse(block):
        block = block[start:stop]
        if sparse:
            return _sparse_rows(block, shape)
        dense = torch.empty(shape)  # torch's own memory is aligned, and products of matrices may depend on that in the last bit
        np.copyto(dense.numpy(), block, casting="unsafe")
        return Rows.of_dense(dense)
    crow = block.indptr[start : stop + 1].astype(np.int64)
    first, last = int(crow[0]), int(crow[-1])
    crow -= first
    col, val = block.indices[first:last], block.data[first:last]
    if not val.all():
        kept = val != 0
        crow = np.concatenate([[0], np.cumsum(kept)])[crow]
        col, val = col[kept], val[kept]
    if sparse:
        return Rows.of_csr(*_tensors(crow, col, val), shape)
    out = torch.empty(shape)
    csr(crow, col, val.astype(np.float32, copy=False), shape).toarray(out=out.numpy())
    return Rows.of_dense(out)


def _sparse_rows(block: Array, shape: tuple[int, int]) -> Rows:
    row, col = np.nonzero(block)
    crow = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=shape[0]))]).astype(np.int64)
    return Rows.of_csr(*_tensors(crow, col, block[row, col]), shape)


def _tensors(crow: Array, col: Array, val: Array) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Copies of their own, so that a minibatch does not keep the window alive that it was cut from."""
    return torch.from_numpy(crow), torch.from_numpy(col.astype(np.int64)), torch.from_numpy(val.astype(np.float32))


def _library_sizes(obs: pd.DataFrame, schema: Schema, found: Findings) -> Array:
    if schema.kind != "counts":
        return np.ones((found.shape[0], 1), dtype=np.float32)
    size = sizes(obs, schema.size) if schema.size else np.where(found.library > 0, found.library, 1.0)
    return size.astype(np.float32)[:, None]
