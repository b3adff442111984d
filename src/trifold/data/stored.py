"""Cells on disk: h5ad files and zarr folders, read in blocks of rows and given in the order asked for."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import pandas as pd

from trifold.data.matrix import Array, csr, gather, require_indices, require_numbers, require_pointers
from trifold.data.source import MemorySource, PickedSource, Source, label_of, require_fit, which
from trifold.errors import DataError, TrifoldWarning

_GAP = 64  # rows that may lie unasked between two that are read in one piece


class H5adSource(Source):
    """Cells of an h5ad file or zarr folder; only the rows asked for are read, only row pointers and obs stay in memory.

    Args:
        opener: Gives the X, layer, raw or obsm element, within a context.
        obs: [n, columns].
        genes: [g] names.
        x, where, other: As in :class:`Source`.

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
    ):
        self._open, self.obs, self.genes, self.x, self.where, self.other = opener, obs, genes, x, where, other
        with opener() as element:
            self._sparse = _form(element) == "csr"
            values = element["data"] if self._sparse else element
            shape = _shape(element)
            self.n, self.dtype = shape[0], np.dtype(values.dtype)
            require_numbers(self.dtype, where)
            require_fit(shape, obs, genes, where)
            _refuse_bomb(values, where)
            if self._sparse:
                _refuse_bomb(element["indptr"], where)
                self._indptr = np.asarray(element["indptr"][:])
                require_pointers(self._indptr, min(values.shape[0], element["indices"].shape[0]), self.n, where=where)

    def take(self, index: Array | slice) -> Any:
        """The rows asked for, in the stored dtype and in the order asked for."""
        with self._open() as element:
            if isinstance(index, slice):
                return self._span(element, index.start, index.stop)
            if not len(index):
                return self._span(element, 0, 0)
            wanted, inverse = np.unique(index, return_inverse=True)
            cuts = np.flatnonzero(np.diff(wanted) > _GAP) + 1
            parts = [self._some(element, run) for run in np.split(wanted, cuts)]
        if not self._sparse:
            return np.concatenate(parts)[inverse]
        crow = np.concatenate([[0], np.cumsum(np.concatenate([np.diff(p[0]) for p in parts]))])
        again, at = gather(crow, inverse.reshape(-1))
        col, val = (np.concatenate([p[k] for p in parts])[at] for k in (1, 2))
        return csr(again, col, val, (len(index), len(self.genes)))

    def _some(self, element: Any, run: Array) -> Any:
        block = self._span(element, int(run[0]), int(run[-1]) + 1)
        if not self._sparse:
            return block[run - run[0]]
        crow, at = gather(block.indptr, run - run[0])
        return crow, block.indices[at], block.data[at]

    def _span(self, element: Any, start: int, stop: int) -> Any:
        if not self._sparse:
            return np.asarray(element[start:stop])
        first, last = int(self._indptr[start]), int(self._indptr[stop])
        crow = self._indptr[start : stop + 1].astype(np.int64) - first
        col, val = np.asarray(element["indices"][first:last]), np.asarray(element["data"][first:last])
        require_indices(col, len(self.genes), where=self.where, indptr=crow, first=start)
        shape = (stop - start, len(self.genes))
        block = MemorySource(_raw_csr(crow, col, val, shape), genes=self.genes, where=self.where)  # sorts, adds duplicates up
        return block.take(slice(0, stop - start))


def open_path(path: str, x: str | None) -> Source:
    """The cells of an h5ad file or zarr folder.

    Args:
        path: Of the file or folder.
        x: None for X, else a layer, ``"raw"`` or a key of obsm.

    Returns:
        An :class:`H5adSource`; a :class:`MemorySource` for a matrix stored by columns, with a warning.

    Raises:
        DataError: No such file, not an h5ad file, or links to other files.
        SchemaError: No such layer or key.
    """
    if not os.path.exists(path):
        raise DataError(f"There is no file or folder {path!r}. Give the path of an h5ad file or zarr folder.")
    store = _zarr_at(path) if os.path.isdir(path) else _h5_at(path)
    with store() as root:
        missing = [k for k in ("obs", "var") if k not in root]
        if missing:
            raise DataError(f"{path!r} has no {missing[0]!r}: it is not an AnnData file. Write one with adata.write_h5ad(path).")
        _refuse_links(root, path)
        keys = {k: tuple(root[k].keys()) if k in root else () for k in ("layers", "obsm", "uns")}
        group, key = which(x, keys["layers"], keys["obsm"], "raw" in root, path)
        where = f"{label_of(group, key)} of {os.path.basename(path)}"
        inside = {"X": "X", "raw": "raw/X"}.get(group, f"{group}/{key}")
        if inside not in root:
            raise DataError(f"{path!r} has no {inside}. Name a layer: x={next(iter(keys['layers']), 'counts')!r}.")
        obs, element = _read(root["obs"]), root[inside]
        genes = _names(root["raw/var"] if group == "raw" else root["var"])
        whole = _read(element) if _form(element) in ("csc", "other") else None
        if group == "obsm":
            width = len(whole.columns) if isinstance(whole, pd.DataFrame) else _shape(element)[1]
            genes = tuple(f"{key}_{j}" for j in range(width))
            genes = tuple(map(str, whole.columns)) if isinstance(whole, pd.DataFrame) else genes
    kept: dict[str, Any] = {"obs": obs, "genes": genes, "x": None if group == "X" else x, "where": where, "other": keys}
    if whole is not None:
        return _whole(whole, kept)

    @contextmanager
    def opener() -> Iterator[Any]:
        with store() as root:
            yield root[inside]

    return H5adSource(opener, **kept)


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
    source = _whole(_read(element), kept) if _form(element) == "csc" else H5adSource(lambda: nullcontext(element), **kept)
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


def _raw_csr(crow: Array, col: Array, val: Array, shape: tuple[int, int]) -> Any:
    import scipy.sparse as sp

    return sp.csr_matrix((val, col, crow), shape=shape, copy=False)


def _h5_at(path: str) -> Callable[[], AbstractContextManager[Any]]:
    @contextmanager
    def store() -> Iterator[Any]:
        import h5py

        try:
            file = h5py.File(path, "r")
        except OSError as error:
            raise DataError(f"{path!r} cannot be opened as an h5ad file: {error}. Check that it is complete.") from None
        with file:
            yield file

    return store


def _zarr_at(path: str) -> Callable[[], AbstractContextManager[Any]]:
    @contextmanager
    def store() -> Iterator[Any]:
        import zarr

        try:
            root = zarr.open_group(path, mode="r")
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f"{path!r} cannot be opened as a zarr folder: {error}. Give an h5ad file, or adata.write_zarr(path).") from None
        yield root

    return store


def _read(element: Any) -> Any:
    from anndata.io import read_elem

    return read_elem(element)


def _names(var: Any) -> tuple[str, ...]:
    key = var.attrs.get("_index", "_index")
    return tuple(map(str, _read(var[key]) if key in var else _read(var).index))


def _form(element: Any) -> str:
    kind = str(element.attrs.get("encoding-type", element.attrs.get("h5sparse_format", "")))
    if kind.startswith(("csr", "csc")):
        return kind[:3]
    return "array" if hasattr(element, "dtype") else "other"


def _shape(element: Any) -> tuple[int, int]:
    shape = element.attrs.get("shape", element.attrs.get("h5sparse_shape")) if not hasattr(element, "dtype") else element.shape
    if shape is None or len(shape) != 2:
        raise DataError(f"A stored matrix must have two axes, cells and genes; found shape {shape}.")
    return int(shape[0]), int(shape[1])


def _refuse_links(group: Any, path: str) -> None:
    """Refuse external links, external storage and virtual data sets, which can name any file that the user can read."""
    import h5py

    if not isinstance(group, h5py.Group):
        return
    seen: set[int] = set()
    todo = [group]
    while todo:
        here = todo.pop()
        address = h5py.h5o.get_info(here.id).addr
        if address in seen:
            continue
        seen.add(address)
        for name in here:
            link = here.get(name, getlink=True)
            full = f"{here.name.rstrip('/')}/{name}"
            if isinstance(link, h5py.ExternalLink):
                raise DataError(
                    f"{full} of {path!r} is a link to another file ({link.filename!r}); it is not read. Copy the data into the file."
                )
            if not isinstance(link, h5py.HardLink):
                continue
            item = here[name]
            if isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
                raise DataError(f"{full} of {path!r} keeps its values in another file; it is not read. Copy the data into the file.")
            if isinstance(item, h5py.Group):
                todo.append(item)


def _refuse_bomb(values: Any, where: str) -> None:
    """Refuse a data set that claims far more than any compression can hold in the bytes that are there."""
    claimed = int(np.prod(values.shape, dtype=object)) * values.dtype.itemsize
    held = values.id.get_storage_size() if hasattr(values, "id") else None
    if held is not None and claimed > 2**30 and claimed > 1100 * max(1, held):
        raise DataError(f"{where} claims {claimed / 2**30:.0f} GiB but {held} bytes are stored. The file is damaged: write it again.")
