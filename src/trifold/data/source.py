"""Where cells come from: ``Source`` gives rows in the order asked for; in memory here, on disk in ``stored``, several in ``joined``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from trifold.data.matrix import Array, csr, gather, pick_columns, require_numbers, stored_in, to_csr
from trifold.errors import DataError, SchemaError, listing, suggest

_DENSE, _SPARSE = 1 << 22, 1 << 20  # values aimed at in one chunk; of sparse data each has an index and takes more to look at
_WINDOW, _WINDOW_VALUES = 16_384, 1 << 22  # cells, and values, that are read and shuffled together


class Source(ABC):
    """n cells x g genes with their covariates, in memory or on disk.

    Attributes:
        n: Number of cells.
        genes: [g] names of the genes.
        names: [n] names of the cells.
        obs: [n, columns] covariates; without columns when there are none.
        x: Which matrix it is: None for X, else a layer, ``"raw"`` or a key of obsm.
        where: Name of the matrix in messages: ``"layers['counts']"``.
        dtype: Of the values as stored.
        block: Neighbouring cells that are best read together; None in memory, where order costs nothing.
        sparse: Whether ``take`` gives CSR.
        other: Names that messages mention when a column is looked for in vain: ``{"obsm": ("X_pca",)}``.
    """

    n: int
    genes: tuple[str, ...]
    obs: pd.DataFrame
    x: str | None
    where: str
    dtype: np.dtype[Any]
    block: int | None = None
    sparse: bool = False
    other: dict[str, tuple[str, ...]]

    @abstractmethod
    def take(self, index: Array | slice) -> Any:
        """The rows asked for, [k, g], CSR or dense, in the dtype in which they are stored; the index is valid."""

    @property
    def names(self) -> Array:
        """[n] names of the cells."""
        return np.asarray(self.obs.index)

    def stored(self, index: Array | slice) -> int:
        """How many values are stored for some cells: what reading them costs."""
        count = index.stop - index.start if isinstance(index, slice) else len(index)
        return count * len(self.genes)

    @property
    def width(self) -> float:
        """Values stored for a cell, on average; at least 1."""
        return max(1.0, self.stored(slice(0, self.n)) / max(1, self.n))

    @property
    def window(self) -> int:
        """Cells that are read, and shuffled, together: 16,384, or as many as hold some 4 million values; fewer in memory."""
        return max(1, min(_WINDOW, int((_WINDOW_VALUES if self.block else _SPARSE) // self.width)))

    def rows(self, index: Sequence[int] | Array) -> Any:
        """Some cells, in the order asked for; a cell may be asked for twice.

        Args:
            index: [k] positions of cells, from 0.

        Returns:
            [k, g] float32: a canonical ``csr_matrix``, or an array where values are stored densely.

        Raises:
            DataError: A position outside the data.
        """
        block = self.take(positions(index, self.n))
        if sp.issparse(block):
            return block.astype(np.float32) if block.dtype != np.float32 else block
        return np.ascontiguousarray(block, dtype=np.float32)

    def chunks(self, size: int | None = None) -> Iterator[tuple[int, Any]]:
        """All cells in order, as (first row, block [k, g] in the stored dtype); ``size`` rows each, by default some million values."""
        size = size or max(1, int((_SPARSE if self.sparse else _DENSE) // self.width))
        for start in range(0, self.n, size):
            yield start, self.take(slice(start, min(self.n, start + size)))


class MemorySource(Source):
    """Cells in memory; nothing is copied if the matrix is dense or canonical CSR.

    Args:
        matrix: [n, g] array or any scipy sparse matrix. Never changed.
        genes: [g] names.
        obs: [n, columns].
        x, where, other: As in :class:`Source`.

    Raises:
        DtypeError: The values are no numbers that we can use.
        DataError: Shapes that do not fit, or a damaged sparse structure.
    """

    def __init__(
        self,
        matrix: Any,
        *,
        genes: Sequence[object] | None = None,
        obs: pd.DataFrame | None = None,
        x: str | None = None,
        where: str = "X",
        other: dict[str, tuple[str, ...]] | None = None,
    ):
        self.sparse = sp.issparse(matrix)
        if self.sparse:
            self._indptr, self._indices, self._data, shape = to_csr(matrix, where)
            self._dense: Array | None = None
            short = self._indptr.dtype == self._indices.dtype == np.int32  # scipy copies all indices of other types at each look-up
            self._csr = csr(self._indptr, self._indices, self._data, shape) if short else None
        else:
            self._dense = np.asarray(matrix)
            require_numbers(self._dense.dtype, where)
            if self._dense.ndim != 2:
                raise DataError(
                    f"{where} must have two axes, cells and genes; found shape {self._dense.shape}. Pass a matrix of cells x genes."
                )
            self._data, shape = self._dense, (self._dense.shape[0], self._dense.shape[1])
        self.n = shape[0]
        self.genes = tuple(str(g) for g in genes) if genes is not None else tuple(f"gene_{j}" for j in range(shape[1]))
        self.obs = obs if obs is not None else pd.DataFrame(index=pd.RangeIndex(self.n).astype(str))
        self.x, self.where, self.dtype, self.other = x, where, self._data.dtype, other or {}
        require_fit(shape, self.obs, self.genes, where)

    def take(self, index: Array | slice) -> Any:
        """The rows asked for, in the stored dtype."""
        if self._dense is not None:
            return self._dense[index]
        if isinstance(index, slice):
            first, last = int(self._indptr[index.start]), int(self._indptr[index.stop])
            crow = self._indptr[index.start : index.stop + 1].astype(np.int64) - first
            return csr(crow, self._indices[first:last], self._data[first:last], (len(crow) - 1, len(self.genes)))
        if self._csr is not None:
            return self._csr[index]
        crow, at = gather(self._indptr, index)
        return csr(crow, self._indices[at], self._data[at], (len(index), len(self.genes)))

    def stored(self, index: Array | slice) -> int:
        """How many values are stored for some cells."""
        return super().stored(index) if self._dense is not None else stored_in(self._indptr, index)


class PickedSource(Source):
    """Some rows and columns of another source, in any order.

    Args:
        source: The other one.
        rows: [n] rows of it; None for all.
        columns: [g] columns of it, -1 for a gene that it lacks (zeros); None for all.
        genes: [g] names of the columns.
    """

    def __init__(self, source: Source, *, rows: Array | None = None, columns: Array | None = None, genes: Sequence[str] | None = None):
        self._source, self._rows, self._columns = source, rows, columns
        self.n = source.n if rows is None else len(rows)
        self.obs = source.obs if rows is None else source.obs.iloc[rows]
        self.x, self.where, self.dtype, self.other = source.x, source.where, source.dtype, source.other
        self.genes, self.block, self.sparse = source.genes, source.block, source.sparse
        if columns is not None:
            self.genes = tuple(genes) if genes is not None else tuple(source.genes[j] for j in columns)
            self._lookup = np.full(len(source.genes), -1, dtype=np.int64)
            self._lookup[columns[columns >= 0]] = np.flatnonzero(columns >= 0)

    def take(self, index: Array | slice) -> Any:
        """The rows asked for, in the stored dtype."""
        block = self._source.take(index if self._rows is None else self._rows[index])
        return block if self._columns is None else pick_columns(block, self._columns, self._lookup)

    def stored(self, index: Array | slice) -> int:
        """How many values are stored for some cells, those of columns that are left out too: they are read."""
        return self._source.stored(index if self._rows is None else self._rows[index])


def open(data: Any, x: str | None = None, obs: pd.DataFrame | None = None) -> Source:
    """The cells of whatever holds them.

    Args:
        data: AnnData (in memory, backed, or a view), path or address of an h5ad file or zarr folder (read in blocks; addresses such as
            ``"s3://bucket/a.zarr"`` through fsspec), a list of those, a folder or a pattern (``"data/*.h5ad"``) of files, array, DataFrame
            (genes from its columns), scipy sparse matrix, or a Source, which is returned as it is. Never changed.
        x: None for X, else a layer, ``"raw"`` or a key of obsm. Only for AnnData and files.
        obs: [n, columns] covariates, in the order of the rows; only for arrays, DataFrames and sparse matrices.

    Returns:
        The source.

    Raises:
        DataError: Data of a kind that cannot be read, shapes that do not fit, or a damaged matrix.
        SchemaError: No such layer or key; the message lists those that there are.
    """
    from trifold.data.opening import opened  # it makes sources, so it stands above this file

    return opened(data, x, obs)


def positions(index: Any, n: int) -> Array:
    """[k] int64 positions, refused unless all of them lie in 0 to n - 1."""
    index = np.asarray(index)
    if index.dtype == bool:
        raise DataError("Rows are asked for by position; found a boolean mask. Pass numpy.flatnonzero(mask).")
    if index.size == 0:
        return np.zeros(0, dtype=np.int64)
    if index.dtype.kind not in "iu" or index.ndim != 1:
        raise DataError(f"Rows are asked for by a list of whole numbers; found {index.dtype} of shape {index.shape}. Pass [0, 1, 2].")
    index = index.astype(np.int64, copy=False)
    if index.min() < 0 or index.max() >= n:
        bad = int(index[(index < 0) | (index >= n)][0])
        raise DataError(f"Rows must lie in 0 to {n - 1}; found {bad}. Rows are positions, not names: use obs_names.get_indexer(names).")
    return index


def require_fit(shape: tuple[int, int], obs: pd.DataFrame, genes: Sequence[str], where: str) -> None:
    """Refuse names and covariates that do not have the matrix's number of rows and columns."""
    if len(obs) != shape[0]:
        raise DataError(
            f"{where} has {shape[0]} rows but obs has {len(obs)}. They must be the same cells in the same order. Use obs=obs.loc[names]."
        )
    if len(genes) != shape[1]:
        raise DataError(
            f"{where} has {shape[1]} columns but there are {len(genes)} gene names. They must be the same genes in the same order. "
            "Subset the matrix or the names."
        )


def which(x: str | None, layers: Sequence[str], obsm: Sequence[str], raw: bool, what: str) -> tuple[str, str]:
    """(group, key) of the matrix that x names: ``("layers", "counts")``; with a message that lists what there is."""
    found = (
        [("layers", x) for k in layers if k == x] + [("obsm", x) for k in obsm if k == x] + ([("raw", "X")] if raw and x == "raw" else [])
    )
    if x is None or (x == "X" and not found):
        return "X", "X"
    if len(found) > 1:
        names = " and ".join(g if g == "raw" else f"{g}[{x!r}]" for g, _ in found)
        raise SchemaError(f"x={x!r} names both {names} of {what}. Rename one of them.")
    if not found:
        options = [*layers, *(["raw"] if raw else []), *obsm]
        raise SchemaError(
            f"{what} has no layer, raw or obsm named {x!r}.{suggest(x, options)} "
            f"layers: {listing(layers, 10) or 'none'}; raw: {'yes' if raw else 'no'}; obsm: {listing(obsm, 10) or 'none'}. x=None means X."
        )
    return found[0][0], str(x)


def label_of(group: str, key: str) -> str:
    """How messages name a matrix."""
    return {"X": "X", "raw": "raw.X"}.get(group, f"{group}[{key!r}]")
