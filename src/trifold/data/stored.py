"""Cells on disk or in object storage: h5ad files and zarr folders, read in blocks of rows and given in the order asked for."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import pandas as pd

from trifold.data import packed, preflight
from trifold.data.matrix import Array, below, canonical, require_indices, require_numbers, require_pointers, stored_in, take_rows
from trifold.data.pieces import ranges, read_pieces
from trifold.data.places import by_zarrs, is_address, readable, store_at
from trifold.data.source import MemorySource, PickedSource, Source, label_of, require_fit, which
from trifold.errors import DataError, TrifoldWarning

MARK = "trifold"  # attribute of the root of a zarr folder that ``trifold convert`` wrote
_GAP = 64  # rows that may lie unasked between two that are read in one piece
_PART = 1 << 20  # values held at once beside those that are wanted
_BLOCK, _SHUFFLED_BLOCK = 256, 2048  # most neighbours in a block of a sampler; where rows are shuffled already, they are as good as any
_AT_ONCE = 8  # reads under way at once over a network


class H5adSource(Source):
    """Cells of an h5ad file or zarr folder; only the rows asked for are read, only row pointers and obs stay in memory.

    Args:
        opener: Gives the X, layer, raw or obsm element, within a context.
        obs: [n, columns].
        genes: [g] names.
        x, where, other: As in :class:`Source`.
        shuffled: Whether the rows were shuffled when the file was written, so that neighbours are no more alike than other cells.
        remote: Whether each read waits for a network, so that several are under way at once.

    Raises:
        DtypeError: The values are no numbers that we can use.
        DataError: Shapes that do not fit, or a damaged matrix.
    """

    block = 64

    def __init__(
        self,
        opener: Callable[[], AbstractContextManager[Any]],
        *,
        obs: pd.DataFrame,
        genes: tuple[str, ...],
        x: str | None,
        where: str,
        other: dict[str, tuple[str, ...]],
        shuffled: bool = False,
        remote: bool = False,
    ):
        self.obs, self.genes, self.x, self.where, self.other = obs, genes, x, where, other
        self._at_once = _AT_ONCE if remote else 1
        self._known: dict[str, Array] = {}  # chunks that were looked at
        with opener() as element, readable(where):
            self.sparse = _form(element) == "csr"
            arrays = _arrays(element)
            values, shape = arrays["data"], _shape(element)
            self.n, self.dtype = shape[0], np.dtype(values.dtype)
            require_numbers(self.dtype, where)
            require_fit(shape, obs, genes, where)
            if self.sparse:
                _require_whole(arrays["indptr"])
                self._indptr = np.asarray(arrays["indptr"][:])
                require_pointers(self._indptr, min(values.shape[0], arrays["indices"].shape[0]), self.n, where=where)
            chunk = 0.0 if hasattr(values, "id") else values.chunks[0] / (self.width if self.sparse else 1)
        self._open: Callable[[], AbstractContextManager[Any]]
        if hasattr(values, "id"):  # an open HDF5 file; zarr opens what it reads when it reads
            self._open = _then(opener, _arrays)
        else:
            faster = {k: by_zarrs(v) for k, v in arrays.items()}
            self._open = lambda: nullcontext(faster)
            self.block = int(np.clip(round(chunk), 64, _BLOCK))  # a chunk is decoded whole, so a block spans it
        if shuffled:
            self.block = _SHUFFLED_BLOCK

    def stored(self, index: Array | slice) -> int:
        """How many values are stored for some cells."""
        return stored_in(self._indptr, index) if self.sparse else super().stored(index)

    def take(self, index: Array | slice) -> Any:
        """The rows asked for, in the stored dtype and in the order asked for; read from first to last, neighbours in one piece."""
        if isinstance(index, slice):
            wanted, inverse = np.arange(index.start, index.stop), None
        else:
            wanted, inverse = np.unique(index, return_inverse=True)
        with self._open() as arrays, readable(self.where):
            blocks = [self._some(arrays, part) for part in self._parts(wanted)]
        block = blocks[0] if len(blocks) == 1 else below(blocks) if self.sparse else np.concatenate(blocks)
        return block if inverse is None else self._picked(block, inverse.reshape(-1))

    def _parts(self, wanted: Array) -> list[Array]:
        """The rows in parts, where reading all at once would hold many more in memory than are wanted: those in gaps are read too."""
        starts, stops = _runs(wanted)
        first, last, own = (self._indptr[at] if self.sparse else at * len(self.genes) for at in (starts, stops, wanted))
        if int((last - first).sum()) <= max(_PART, 1.5 * self.stored(wanted)):
            return [wanted]
        return np.split(wanted, np.flatnonzero(np.diff(own // _PART)) + 1)

    def _some(self, arrays: Any, wanted: Array) -> Any:
        starts, stops = _runs(wanted)
        rows = ranges(starts, stops)  # all that are read
        block = self._csr(arrays, starts, stops, rows) if self.sparse else self._read(arrays["data"], starts, stops)
        return block if len(rows) == len(wanted) else self._picked(block, np.searchsorted(rows, wanted))

    def _picked(self, block: Any, at: Array) -> Any:
        if len(at) == block.shape[0] and np.array_equal(at, np.arange(len(at))):
            return block
        return take_rows(block, at) if self.sparse else block[at]

    def _csr(self, arrays: Any, starts: Array, stops: Array, rows: Array) -> Any:
        first, last = (self._indptr[at].astype(np.int64) for at in (starts, stops))
        col, val = (self._read(arrays[name], first, last) for name in ("indices", "data"))
        crow = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(self._indptr[rows + 1].astype(np.int64) - self._indptr[rows], out=crow[1:])
        require_indices(col, len(self.genes), where=self.where, indptr=crow, rows=rows)
        return canonical(crow, col, val, (len(rows), len(self.genes)))

    def _read(self, values: Any, starts: Array, stops: Array) -> Array:
        packed.require_pieces(values, starts, stops, self._known)
        return read_pieces(values, starts, stops, at_once=self._at_once)


def open_path(path: str, x: str | None) -> Source:
    """The cells of an h5ad file or zarr folder.

    Args:
        path: Of the file or folder, or its address: ``"s3://bucket/a.zarr"``.
        x: None for X, else a layer, ``"raw"`` or a key of obsm.

    Returns:
        An :class:`H5adSource`; a :class:`MemorySource` for a matrix stored by columns, with a warning.

    Raises:
        DataError: No such file, not an h5ad file, links to other files, or a protocol whose package is not installed.
        SchemaError: No such layer or key.
    """
    store = store_at(path)
    with store() as root, readable(path):
        missing = [k for k in ("obs", "var") if k not in root]
        if missing:
            raise DataError(f"{path!r} has no {missing[0]!r}: it is not an AnnData file. Write one with adata.write_h5ad(path).")
        keys = {k: tuple(root[k].keys()) if k in root else () for k in ("layers", "obsm", "uns")}
        group, key = which(x, keys["layers"], keys["obsm"], "raw" in root, path)
        where = f"{label_of(group, key)} of {os.path.basename(path.rstrip('/'))}"
        inside = {"X": "X", "raw": "raw/X"}.get(group, f"{group}/{key}")
        if inside not in root:
            raise DataError(f"{path!r} has no {inside}. Name a layer: x={next(iter(keys['layers']), 'counts')!r}.")
        obs, element = read(root["obs"]), root[inside]
        genes = _names(root["raw/var"] if group == "raw" else root["var"])
        whole = read(element) if _form(element) in ("csc", "other") else None
        if group == "obsm":
            width = len(whole.columns) if isinstance(whole, pd.DataFrame) else _shape(element)[1]
            genes = tuple(f"{key}_{j}" for j in range(width))
            genes = tuple(map(str, whole.columns)) if isinstance(whole, pd.DataFrame) else genes
        mark = root.attrs.get(MARK)
        shuffled = isinstance(mark, dict) and mark.get("shuffled") is True
    kept: dict[str, Any] = {"obs": obs, "genes": genes, "x": None if group == "X" else x, "where": where, "other": keys}
    if whole is not None:
        return _whole(whole, kept)

    @contextmanager
    def opener() -> Iterator[Any]:
        with store(watched=False) as root:
            yield root[inside]

    return H5adSource(opener, **kept, shuffled=shuffled, remote=is_address(path))


def of_backed(element: Any, root: Any, data: Any, group: str, kept: dict[str, Any]) -> Source:
    """The cells of a backed AnnData, or of a view of one, through the file that it holds open.

    Args:
        element: The matrix on disk.
        root: The AnnData that holds it.
        data: root itself, or a view of it.
        group: ``"X"``, ``"raw"`` or ``"layers"``.
        kept: x, where and other, as in :class:`Source`.
    """
    genes = tuple(map(str, (root.raw if group == "raw" else root).var_names))
    kept = {**kept, "obs": root.obs, "genes": genes}
    with readable(kept["where"]):
        if hasattr(element, "id"):
            preflight.require_h5(element, kept["where"])
        else:
            for array in _arrays(element).values():
                preflight.require_array(array.metadata.to_dict(), kept["where"])
    source = _whole(read(element), kept) if _form(element) == "csc" else H5adSource(lambda: nullcontext(element), **kept)
    if root is data:
        return source
    rows = np.atleast_1d(np.arange(root.n_obs)[data._oidx])
    columns = np.atleast_1d(np.arange(root.n_vars)[data._vidx])
    same = group == "raw" or np.array_equal(columns, np.arange(root.n_vars))
    return PickedSource(source, rows=rows, columns=None if same else columns)


def _whole(matrix: Any, kept: dict[str, Any]) -> Source:
    warnings.warn(
        f"{kept['where']} is not stored by rows, so it is read into memory whole. Write it as CSR or dense to have it read in blocks.",
        TrifoldWarning,
        stacklevel=4,
    )
    return MemorySource(matrix.to_numpy() if isinstance(matrix, pd.DataFrame) else matrix, **kept)


def read(element: Any) -> Any:
    """An element of an AnnData file, in memory.

    Raises:
        DataError: It cannot be read.
    """
    from anndata.io import read_elem

    with readable(str(element.name)):
        _require_whole(element)
        return read_elem(element)


def _require_whole(element: Any) -> None:
    """Refuse an element that is about to be read whole, and that unfolds to far more than is stored of it."""
    if hasattr(element, "id"):
        packed.require_whole(element)
    elif hasattr(element.store, "described"):
        element.store.described.require_whole(element)


def _names(var: Any) -> tuple[str, ...]:
    key = var.attrs.get("_index", "_index")
    return tuple(map(str, read(var[key]) if key in var else read(var).index))


def _runs(wanted: Array) -> tuple[Array, Array]:
    """First row, and last row + 1, of each run of rows without a large gap."""
    if not len(wanted):
        return wanted, wanted
    cuts = np.flatnonzero(np.diff(wanted) > _GAP) + 1
    return wanted[np.concatenate([[0], cuts])], wanted[np.concatenate([cuts - 1, [len(wanted) - 1]])] + 1


def _then(opener: Callable[[], AbstractContextManager[Any]], what: Callable[[Any], Any]) -> Callable[[], AbstractContextManager[Any]]:
    @contextmanager
    def both() -> Iterator[Any]:
        with opener() as element:
            yield what(element)

    return both


def _arrays(element: Any) -> dict[str, Any]:
    """The stored arrays of a matrix: data, and of CSR indices and indptr."""
    return {"data": element} if hasattr(element, "dtype") else {k: element[k] for k in ("data", "indices", "indptr")}


def _form(element: Any) -> str:
    kind = str(element.attrs.get("encoding-type", element.attrs.get("h5sparse_format", "")))
    if kind.startswith(("csr", "csc")):
        return kind[:3]
    return "array" if hasattr(element, "dtype") else "other"


def _shape(element: Any) -> tuple[int, int]:
    shape = element.attrs.get("shape", element.attrs.get("h5sparse_shape")) if not hasattr(element, "dtype") else element.shape
    if shape is None or len(shape) != 2:
        raise DataError(f"A stored matrix must have two axes, cells and genes; found shape {shape}. Write the data again with anndata.")
    return int(shape[0]), int(shape[1])
