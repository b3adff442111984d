"""Matrices as users hold them: which dtypes hold numbers, which sparse structures are sound, how rows are gathered.

Pure functions on numpy arrays. Nothing here hands an unchecked index to compiled code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from trifold.errors import DataError, DtypeError

Array = NDArray[Any]
_SPAN = 1 << 22  # stored values looked at in one piece


def require_numbers(dtype: Any, where: str) -> None:
    """Refuse a dtype that holds no numbers that we can use.

    Args:
        dtype: Of the matrix as stored.
        where: Name of the matrix in messages, ``"layers['counts']"``.

    Raises:
        DtypeError: float16, object, complex, text or any other dtype than booleans, integers, float32 and float64.
    """
    try:
        dtype = np.dtype(dtype)
    except TypeError:
        raise DtypeError(
            f"{where} has the dtype {dtype}; needed: integers, float32 or float64. Convert it with .astype('float32')."
        ) from None
    if dtype.kind in "biu" or (dtype.kind == "f" and dtype.itemsize >= 4):
        return
    if dtype.kind == "f":
        raise DtypeError(
            f"{where} has the dtype {dtype.name}, which is exact to 2,048 only and turns values above 65,504 into inf; needed: integers, "
            "float32 or float64. Read the original values again in float32; converting this matrix does not bring lost values back."
        )
    meaning = {"c": "complex numbers", "O": "Python objects", "U": "text", "S": "text", "T": "text"}.get(dtype.kind, "no numbers")
    name = "text" if dtype.kind in "US" else dtype.name
    raise DtypeError(
        f"{where} has the dtype {name} ({dtype.str}: {meaning}); needed: integers, float32 or float64. "
        "Convert it with .astype('float32') if its values are numbers."
    )


def require_sound(
    indptr: Array, indices: Array, stored: int, *, shape: tuple[int, int], where: str, axes: tuple[str, str] = ("row", "gene")
) -> None:
    """Refuse a compressed sparse matrix whose pointers or indices do not fit its shape. Reads each of them once.

    Args:
        indptr: [major + 1] row pointers (column pointers for CSC).
        indices: [nnz] column (row for CSC) of each stored value.
        stored: Number of stored values.
        shape: (major, minor).
        where: Name of the matrix in messages.
        axes: What a major and a minor position are called.

    Raises:
        DataError: Pointers that decrease or do not end at the number of stored values, or an index outside the matrix.
    """
    require_pointers(indptr, min(len(indices), stored), shape[0], where=where)
    if len(indices) != stored:
        raise DataError(f"{where} holds {stored} values but {len(indices)} indices. {_REBUILD}")
    require_indices(indices, shape[1], where=where, indptr=indptr, axes=axes)


def require_pointers(indptr: Array, stored: int, major: int, *, where: str) -> None:
    """Refuse pointers that do not start at 0, decrease, or do not end at the number of stored values."""
    if indptr.ndim != 1 or indptr.dtype.kind not in "iu" or len(indptr) != major + 1:
        raise DataError(f"indptr of {where} must be {major + 1} integers; found shape {indptr.shape} of {indptr.dtype}. {_REBUILD}")
    if indptr[0] != 0:
        raise DataError(f"indptr of {where} must start at 0; found {indptr[0]}. {_REBUILD}")
    down = np.flatnonzero(indptr[1:] < indptr[:-1])
    if len(down):
        at = int(down[0])
        raise DataError(
            f"indptr of {where} must not decrease; found {indptr[at]} then {indptr[at + 1]} at position {at} ({len(down)} such). {_REBUILD}"
        )
    if indptr[-1] != stored:
        raise DataError(f"indptr of {where} ends at {indptr[-1]} but {stored} values are stored. {_REBUILD}")


def require_indices(
    indices: Array,
    minor: int,
    *,
    where: str,
    indptr: Array | None = None,
    rows: Array | None = None,
    axes: tuple[str, str] = ("row", "gene"),
) -> None:
    """Refuse indices that are negative or not below ``minor``.

    Args:
        indices: [nnz] integers.
        minor: Their bound.
        where: Name of the matrix in messages.
        indptr: [major + 1] pointers of these very indices, to name the row in the message.
        rows: [major] the row that each pointer is of; None: they are counted from 0.
        axes: What a major and a minor position are called.

    Raises:
        DataError: Naming the matrix, the row, the index and how many there are.
    """
    if indices.dtype.kind not in "iu":
        raise DataError(f"indices of {where} must be integers; found {indices.dtype}. {_REBUILD}")
    if not len(indices) or (indices.min() >= 0 and indices.max() < minor):
        return
    bad = np.flatnonzero((indices < 0) | (indices >= minor))
    at = int(bad[0])
    row = ""
    if indptr is not None:
        place = int(np.searchsorted(indptr, at, side="right")) - 1
        row = f" in {axes[0]} {place if rows is None else rows[place]}"
    raise DataError(
        f"indices of {where} must lie in 0 to {minor - 1} (one per {axes[1]}); found {indices[at]}{row} ({len(bad)} such). {_REBUILD}"
    )


_REBUILD = "The matrix is damaged: build it again from its source."


def is_canonical(indptr: Array, indices: Array) -> bool:
    """Whether the indices of each row increase strictly: sorted, without duplicates."""
    total = 0
    for start in range(0, max(0, len(indices) - 1), _SPAN):
        piece = indices[start : start + _SPAN + 1]
        total += int(np.count_nonzero(piece[1:] <= piece[:-1]))
    edges = np.unique(indptr[(indptr > 0) & (indptr < len(indices))])
    return total == int(np.count_nonzero(indices[edges] <= indices[edges - 1]))


def to_csr(matrix: Any, where: str) -> tuple[Array, Array, Array, tuple[int, int]]:
    """The arrays of a canonical CSR form of any scipy sparse matrix; shared with the original when that is canonical CSR.

    Args:
        matrix: A scipy sparse matrix or array of any format. Never changed.
        where: Name of the matrix in messages.

    Returns:
        (indptr [n + 1], indices [nnz], data [nnz], (n, g)).

    Raises:
        DtypeError: The values are no numbers that we can use.
        DataError: The structure is damaged, or there are not two axes.
    """
    if matrix.ndim != 2:
        raise DataError(f"{where} must have two axes, cells and genes; found shape {matrix.shape}. For one cell pass x[None, :].")
    require_numbers(matrix.dtype, where)
    shape = (int(matrix.shape[0]), int(matrix.shape[1]))
    form = matrix.format
    if form in ("csr", "csc", "bsr"):
        major, minor = shape if form != "csc" else (shape[1], shape[0])
        if form == "bsr":
            major, minor = major // matrix.blocksize[0], minor // matrix.blocksize[1]
        axes = ("row", "gene") if form != "csc" else ("gene", "row")
        require_sound(np.asarray(matrix.indptr), np.asarray(matrix.indices), len(matrix.data), shape=(major, minor), where=where, axes=axes)
    elif form == "coo":
        rows, cols = np.asarray(matrix.row), np.asarray(matrix.col)
        if not len(rows) == len(cols) == len(matrix.data):
            raise DataError(f"{where} holds {len(matrix.data)} values but {len(rows)} rows and {len(cols)} columns. {_REBUILD}")
        require_indices(rows, shape[0], where=f"{where} (row)", axes=("entry", "row"))
        require_indices(cols, shape[1], where=where)
    if form != "csr":
        if form == "coo":  # conversion adds duplicates up, which must not wrap round in a small integer
            matrix = sp.coo_matrix((_wide(np.asarray(matrix.data)), (matrix.row, matrix.col)), shape=shape)
        matrix = matrix.tocsr()
    indptr, indices, data = (_native(np.asarray(a)) for a in (matrix.indptr, matrix.indices, matrix.data))
    if is_canonical(indptr, indices):
        return indptr, indices, data, shape
    clean = canonical(indptr, indices, data, shape)
    return clean.indptr, clean.indices, clean.data, shape


def gather(indptr: Array, index: Array) -> tuple[Array, Array]:
    """Where the values of some rows lie.

    Args:
        indptr: [n + 1] row pointers, of any integer dtype.
        index: [k] rows, in any order.

    Returns:
        ([k + 1] int64 row pointers of the gathered rows, [nnz] int64 positions of their values).
    """
    start = indptr[index].astype(np.int64)
    length = indptr[index + 1].astype(np.int64) - start
    crow = np.zeros(len(index) + 1, dtype=np.int64)
    np.cumsum(length, out=crow[1:])
    return crow, np.repeat(start - crow[:-1], length) + np.arange(crow[-1])


def stored_in(indptr: Array, index: Array | slice) -> int:
    """How many values lie between the pointers of some rows, [k] positions or a slice."""
    if isinstance(index, slice):
        return int(indptr[index.stop]) - int(indptr[index.start])
    return int((indptr[index + 1].astype(np.int64) - indptr[index]).sum())


def csr(crow: Array, col: Array, val: Array, shape: tuple[int, int]) -> sp.csr_matrix:
    """A scipy CSR matrix of arrays that are known to be canonical."""
    out = sp.csr_matrix((val, col, crow), shape=shape, copy=False)
    out.has_sorted_indices = True
    out.has_canonical_format = True
    return out


def canonical(crow: Array, col: Array, val: Array, shape: tuple[int, int]) -> sp.csr_matrix:
    """A canonical CSR matrix of arrays whose indices are known to lie in its shape: sorted, duplicates added up, int32 where that holds.

    Args:
        crow: [n + 1] row pointers.
        col: [nnz] columns, in any order within a row.
        val: [nnz] values.
        shape: (n, g).
    """
    short = np.int32 if max(len(col), *shape) < np.iinfo(np.int32).max else np.int64
    crow, col = crow.astype(short, copy=False), col.astype(short, copy=False)
    if is_canonical(crow, col):
        return csr(crow, col, val, shape)
    clean = sp.csr_matrix((_wide(val).copy(), col.copy(), crow.copy()), shape=shape)
    clean.sum_duplicates()
    return csr(clean.indptr, clean.indices, clean.data, shape)


def take_rows(block: sp.csr_matrix, index: Array) -> sp.csr_matrix:
    """Rows of a canonical CSR matrix, [k] positions in any order."""
    if block.indptr.dtype == block.indices.dtype == np.int32:
        return block[index]  # compiled; of other types scipy copies all indices first
    crow, at = gather(block.indptr, index)
    return csr(crow, block.indices[at], block.data[at], (len(index), block.shape[1]))


def below(blocks: Sequence[Any]) -> sp.csr_matrix:
    """Canonical CSR matrices of the same width, one below the other."""
    lengths = np.concatenate([np.diff(b.indptr) for b in blocks])
    total = int(lengths.sum(dtype=np.int64))
    short = np.int32 if total < np.iinfo(np.int32).max else np.int64
    crow = np.zeros(len(lengths) + 1, dtype=short)
    np.cumsum(lengths, out=crow[1:])
    col = np.concatenate([b.indices for b in blocks]).astype(short, copy=False)
    val = np.concatenate([b.data for b in blocks])
    return csr(crow, col, val, (len(lengths), blocks[0].shape[1]))


def pick_columns(block: Any, columns: Array, lookup: Array) -> Any:
    """The block with other columns.

    Args:
        block: [n, g] CSR or dense.
        columns: [k] column of the block that each new column comes from, -1 for a column of zeros.
        lookup: [g] its inverse: the new position of each column of the block, -1 for one that is dropped.

    Returns:
        [n, k], of the same form and dtype, canonical if sparse.
    """
    if not sp.issparse(block):
        there = columns >= 0
        if there.all():
            return block[:, columns]
        out = np.zeros((block.shape[0], len(columns)), dtype=block.dtype)
        out[:, there] = block[:, columns[there]]
        return out
    row = np.repeat(np.arange(block.shape[0], dtype=np.int64), np.diff(block.indptr))
    col = lookup[block.indices]
    keep = col >= 0
    row, col, val = row[keep], col[keep], block.data[keep]
    order = np.argsort(row * len(columns) + col, kind="stable")
    crow = np.zeros(block.shape[0] + 1, dtype=np.int64)
    np.cumsum(np.bincount(row, minlength=block.shape[0]), out=crow[1:])
    return csr(crow, col[order], val[order], (block.shape[0], len(columns)))


def _native(array: Array) -> Array:
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _wide(data: Array) -> Array:
    return data.astype(np.int64) if data.dtype.kind in "biu" and data.dtype.itemsize < 8 else data
