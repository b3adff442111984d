"""One streamed look at all values of a source: what is in them, and whether a kind of data can be made of them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from trifold.data.matrix import Array
from trifold.data.source import Source
from trifold.errors import DataError, SchemaError, TrifoldWarning, listing, suggest

KINDS = ("counts", "real", "binary")
FRACTIONAL = ("error", "allow")
EMPTY = ("error", "drop", "keep")

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Tally:
    """How many values have a fault, in how many cells, and the first of them.

    Args:
        values: Number of values.
        cells: Number of cells that hold one.
        first: (row, gene, value) of the first, None if there is none.
    """

    values: int = 0
    cells: int = 0
    first: tuple[int, str, float] | None = None

    def plus(self, other: Tally) -> Tally:
        """The sum of two; the first stays the first."""
        return Tally(self.values + other.values, self.cells + other.cells, self.first or other.first)


@dataclass(frozen=True)
class Findings:
    """What one pass over all values found.

    Args:
        where: Name of the matrix.
        names: [g] genes.
        dtype: Of the values as stored.
        shape: (n, g).
        nonzeros: Number of values other than zero.
        nan, inf, negative, fractional: Tallies of faults; inf also holds what float32 cannot.
        ones: Whether every value is 0 or 1.
        library: [n] sum over genes of each cell, in float64.
        filled: [g] number of cells in which a gene is not zero.
        hint: What the first rows look like, a sentence or nothing: ``"It looks like log1p values."``.
    """

    where: str
    names: tuple[str, ...]
    dtype: str
    shape: tuple[int, int]
    nonzeros: int
    nan: Tally
    inf: Tally
    negative: Tally
    fractional: Tally
    ones: bool
    library: Array
    filled: Array
    hint: str
    filled_cells: Array

    @property
    def density(self) -> float:
        """Share of values other than zero, in [0, 1]."""
        return self.nonzeros / max(1, self.shape[0] * self.shape[1])

    @property
    def empty_cells(self) -> Array:
        """Positions of the cells in which every gene is zero."""
        return np.flatnonzero(self.filled_cells == 0)

    @property
    def empty_genes(self) -> Array:
        """Positions of the genes that are zero in every cell."""
        return np.flatnonzero(self.filled == 0)

    def kind(self, *, fractional: str = "error") -> str:
        """The kind of data that the values are: ``"counts"``, ``"real"`` or ``"binary"``.

        Args:
            fractional: With ``"allow"``, nonnegative values are counts though they are not whole.

        Raises:
            DataError: Values that are counts but for a few, which must be decided by the user.
        """
        if self.dtype == "bool":
            return "binary"
        odd = self.negative.values + self.fractional.values
        if odd == 0 or (fractional == "allow" and self.negative.values == 0):
            return "counts"
        if odd < 0.1 * self.nonzeros and self.nan.values + self.inf.values == 0:
            self.require("counts", fractional=fractional, empty="keep", undecided=True)
        return "real"

    def require(self, kind: str, *, fractional: str = "error", empty: str = "error", undecided: bool = False) -> None:
        """Refuse values that are not of the kind.

        Args:
            kind: ``"counts"`` (whole, not negative), ``"real"`` (finite) or ``"binary"`` (0 or 1).
            fractional: Whether counts may be fractional: ``"error"`` or ``"allow"``.
            empty: What becomes of cells without a count: only ``"error"`` refuses them.
            undecided: Whether the kind was not given by the user, so that the message offers the other.

        Raises:
            DataError: Naming matrix, row, gene, value and how many.
        """
        for tally, what in ((self.nan, "NaN"), (self.inf, "infinite, or too large for float32")):
            if tally.values:
                found = "are NaN" if what == "NaN" else f"are {what}"
                raise DataError(
                    f"{self.where} must hold finite numbers; {_count(tally)} {found} (first: {_first(tally)}). "
                    "Remove these cells, or find out where they come from: trifold does not fill in values."
                )
        other = " or pass kind='real' to model the values as they are." if undecided else ' or pass kind="real" (likelihood="gaussian").'
        if kind == "binary" and not self.ones:
            raise DataError(
                f"{self.where} must hold 0 and 1 only for kind='binary'; found other values. Pass kind='counts' or kind='real'."
            )
        if kind == "counts" and self.negative.values:
            raise DataError(
                f"{self.where} must hold raw counts; {_count(self.negative)} are negative (first: {_first(self.negative)}).{self.hint} "
                f"Pass x=<layer with counts>,{other}"
            )
        if kind == "counts" and self.fractional.values and fractional != "allow":
            share = 100 * self.fractional.cells / max(1, self.shape[0])
            raise DataError(
                f"{self.where} must hold raw counts; {_count(self.fractional)} in {share:.3g} % of the cells are not whole numbers "
                f"(first: {_first(self.fractional)}).{self.hint} Pass x=<layer with counts>, fractional='allow' to accept them,{other}"
            )
        if kind == "counts" and empty == "error" and len(self.empty_cells):
            raise DataError(
                f"{self.where} must hold counts in every cell; {len(self.empty_cells)} of {self.shape[0]} cells have none "
                f"(rows {listing(self.empty_cells)}). Remove them, or pass empty='drop' or empty='keep'."
            )

    def warn(self) -> None:
        """Say which genes are zero in every cell: nothing can be learned of them."""
        empty = self.empty_genes
        if len(empty):
            warnings.warn(
                f"{len(empty)} of {self.shape[1]} genes of {self.where} are zero in every cell: {listing(self.names[j] for j in empty)}. "
                "Nothing can be learned of them; remove them with sc.pp.filter_genes(adata, min_cells=1).",
                TrifoldWarning,
                stacklevel=3,
            )


def check(source: Source, *, kind: str | None = None, fractional: str = "error", empty: str = "error") -> Findings:
    """Look at every value once, in chunks.

    Args:
        source: The cells.
        kind: Refuse what is not of this kind; None looks only.
        fractional: ``"error"`` or ``"allow"``.
        empty: ``"error"``, ``"drop"`` or ``"keep"``.

    Returns:
        What was found.

    Raises:
        DataError: No cells or genes, names of genes that repeat, or values that are not of the kind.
        SchemaError: An unknown kind or policy.
    """
    require_option("fractional", fractional, FRACTIONAL)
    require_option("empty", empty, EMPTY)
    if kind is not None:
        require_option("kind", kind, KINDS)
    require_names(source)
    n, g = source.n, len(source.genes)
    tallies = {k: Tally() for k in ("nan", "inf", "negative", "fractional")}
    library, filled, filled_cells = np.zeros(n), np.zeros(g, dtype=np.int64), np.zeros(n, dtype=np.int64)
    nonzeros, ones, hint = 0, True, ""
    for start, block in source.chunks():
        values = block.data if sp.issparse(block) else block.reshape(-1)
        least, most, whole = _range(values)
        if not (whole and least >= 0 and most <= _LARGEST):
            for name, bad in _faults(values).items():
                tallies[name] = tallies[name].plus(_tally(bad, values, block, start, source.genes))
        ones = ones and whole and least >= 0 and most <= 1
        stop = start + block.shape[0]
        with np.errstate(invalid="ignore"):  # sums of infinities, which are refused later
            library[start:stop], cells, genes = _sums(block, full=least > 0)
        filled_cells[start:stop] = cells
        filled += genes
        nonzeros += int(genes.sum())
        if (
            not hint
            and (tallies["negative"].values or tallies["fractional"].values)
            and not (tallies["nan"].values or tallies["inf"].values)
        ):
            hint = look(block[:256])
    found = Findings(
        where=source.where,
        names=source.genes,
        dtype=source.dtype.name,
        shape=(n, g),
        nonzeros=nonzeros,
        ones=ones,
        library=library,
        filled=filled,
        hint=hint,
        filled_cells=filled_cells,
        **tallies,
    )
    if kind is not None:
        found.require(kind, fractional=fractional, empty=empty)
    return found


def require_names(source: Source) -> None:
    """Refuse data without cells or genes, and genes whose names repeat; warn of cells whose names repeat."""
    for axis, size in (("cells", source.n), ("genes", len(source.genes))):
        if size == 0:
            raise DataError(
                f"{source.where} must have at least one cell and one gene; found no {axis}: {source.n} x {len(source.genes)}. "
                "Look at what the data were subset by."
            )
    again = repeated(source.genes)
    if again:
        raise DataError(
            f"Genes are matched by name, so names must differ; {len(again)} occur more than once: {listing(again)}. "
            "Use adata.var_names_make_unique(), or sum the columns of equal name."
        )
    if not source.obs.index.is_unique:
        cells = repeated(source.names)
        warnings.warn(
            f"{len(cells)} names of cells occur more than once: {listing(cells)}. Results keep the order of the rows; "
            "adata.obs_names_make_unique() makes the names differ.",
            TrifoldWarning,
            stacklevel=4,
        )


def require_option(name: str, value: object, options: Sequence[str]) -> None:
    """Refuse a value that is not one of the options."""
    if value not in options:
        raise SchemaError(f"{name} must be one of {', '.join(map(repr, options))}; found {value!r}.{suggest(value, options)}")


def repeated(names: Sequence[object] | Array) -> list[str]:
    """Names that occur more than once, each once, in the order of their first second occurrence."""
    seen: set[object] = set()
    again: dict[str, None] = {}
    for name in names:
        if name in seen:
            again[str(name)] = None
        seen.add(name)
    return list(again)


def look(block: Any) -> str:
    """What some rows look like, as a sentence that begins with a blank, or nothing: log1p, scaled, or normalised per cell."""
    dense = np.asarray(block.toarray() if sp.issparse(block) else block, dtype=np.float64)
    if dense.min() < 0:
        near = np.abs(dense.mean(0)) < 0.5 * np.maximum(dense.std(0), 1e-12)
        return " The matrix looks scaled (genes have mean 0)." if near.mean() > 0.5 else ""
    totals = dense.sum(1)
    if _alike(totals):
        return f" The matrix looks normalised to {totals.mean():,.0f} per cell."
    if dense.max() < 30:
        back = np.expm1(dense).sum(1)
        if _alike(back):
            return f" The matrix looks like log1p of counts normalised to {back.mean():,.0f} per cell."
        share = (dense != np.rint(dense)).sum() / max(1, np.count_nonzero(dense))
        if dense.max() < 15 and share > 0.5:
            return " The matrix looks like log1p values."
    return ""


def _alike(totals: Array) -> bool:
    totals = totals[totals > 0]
    return len(totals) > 1 and float(totals.std()) < 0.01 * float(totals.mean())


def _range(values: Array) -> tuple[float, float, bool]:
    """(smallest, largest, whether all are whole) of some values: enough to know that none has a fault. NaN if any is."""
    if not len(values):
        return 0.0, 0.0, True
    least, most = values.min(), values.max()
    if values.dtype.kind != "f":
        return float(least), float(most), True
    with np.errstate(invalid="ignore"):
        return float(least), float(most), bool((np.rint(values) == values).all())


def _faults(values: Array) -> dict[str, Array]:
    """Fault -> [k] mask, for the faults that occur in the values."""
    if values.dtype.kind in "bu" or not len(values):
        return {}
    out = {"negative": values < 0}
    if values.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            size = np.abs(values)
            out["nan"], out["inf"] = np.isnan(values), size > _LARGEST
            out["fractional"] = (np.rint(values) != values) & ~out["nan"]
            out["negative"] &= ~out["inf"]
    return {k: m for k, m in out.items() if m.any()}


def _tally(bad: Array, values: Array, block: Any, start: int, genes: tuple[str, ...]) -> Tally:
    at = np.flatnonzero(bad)
    if sp.issparse(block):
        rows, col = np.searchsorted(block.indptr, at, side="right") - 1, int(block.indices[at[0]])
    else:
        rows, col = at // block.shape[1], int(at[0] % block.shape[1])
    first = (start + int(rows[0]), genes[col], float(values[at[0]]))
    return Tally(len(at), len(np.unique(rows)), first)


def _sums(block: Any, *, full: bool) -> tuple[Array, Array, Array]:
    """(sum of each row in float64, nonzeros of each row, nonzeros of each column).

    Args:
        block: [k, g] CSR or dense.
        full: Whether every stored value is above 0.
    """
    if not sp.issparse(block):
        nonzero = block != 0
        return block.sum(1, dtype=np.float64), nonzero.sum(1), nonzero.sum(0)
    library, cells = np.zeros(block.shape[0]), np.diff(block.indptr)
    some, indices = np.flatnonzero(cells), block.indices
    if len(some):
        library[some] = np.add.reduceat(block.data.astype(np.float64, copy=False), block.indptr[some])
    if not full and len(some):
        nonzero = block.data != 0
        cells[some] = np.add.reduceat(nonzero, block.indptr[some], dtype=cells.dtype)
        indices = indices[nonzero]
    return library, cells, np.bincount(indices, minlength=block.shape[1])


def _count(tally: Tally) -> str:
    return f"{tally.values} value{'s' if tally.values > 1 else ''} in {tally.cells} cell{'s' if tally.cells > 1 else ''}"


def _first(tally: Tally) -> str:
    row, gene, value = tally.first or (0, "", 0.0)
    return f"row {row}, gene {gene!r}, {value:.6g}"
