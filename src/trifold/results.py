"""Where an answer goes, rows in order: an array or a CSR matrix in memory, or an AnnData file that is written piece by piece.

A file holds obs, var and uns as the same answer in memory would, and X: dense float32, or CSR for drawn counts. No more of X than one piece
is ever held.
"""

from __future__ import annotations

import errno
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trifold.errors import CheckpointError, SpecError, suggest
from trifold.outputs import filled, free, h5_file, replacing, require_folder, writing

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".h5ad", ".zarr")
_CHUNK = 1 << 18  # values in a chunk of a dense X in an h5ad file: 1 MiB
_OBJECT = 1 << 20  # the least in one of a zarr folder, where a chunk is a file
_ROOM = 1 << 20  # bytes for what a file holds beside X and obs
_RUN = 1 << 16  # stored values of a CSR matrix in a chunk


class Result(ABC):
    """Takes the rows of an answer, in order, some at a time.

    Args:
        n: Number of rows that will come.
    """

    def __init__(self, n: int):
        self.n = n
        self.at = 0  # rows that have come

    def put(self, rows: np.ndarray) -> None:
        """Take the next rows, [k, ...]; they may be changed after."""
        self._put(rows)
        self.at += len(rows)

    @abstractmethod
    def _put(self, rows: np.ndarray) -> None: ...


class Dense(Result):
    """An array, made once the first rows say how wide it is.

    Attributes:
        values: [n, ...] of the dtype of the first rows.
    """

    values: np.ndarray

    def _put(self, rows: np.ndarray) -> None:
        if self.at == 0:
            self.values = np.empty((self.n, *rows.shape[1:]), dtype=rows.dtype)
        self.values[self.at : self.at + len(rows)] = rows


class Sparse(Result):
    """A CSR matrix of what is not zero."""

    def __init__(self, n: int):
        super().__init__(n)
        self._parts: list[Any] = []

    def _put(self, rows: np.ndarray) -> None:
        from scipy.sparse import csr_matrix

        self._parts.append(csr_matrix(rows))

    @property
    def values(self) -> Any:
        """[n, g] ``csr_matrix``."""
        from scipy.sparse import vstack

        return vstack(self._parts, format="csr")


def require_out(out: str | Path, *, overwrite: bool) -> Path:
    """Refuse a place that an answer cannot be written to: before the work, not after.

    Args:
        out: The file or folder.
        overwrite: Whether what is there may be replaced.

    Raises:
        SpecError: Its name does not end in ``.h5ad`` or ``.zarr``.
        CheckpointError: It exists, or its folder cannot be written to.
    """
    path = Path(out)
    if path.suffix not in SUFFIXES:
        raise SpecError(
            f"out= needs a name that ends in {' or '.join(SUFFIXES)}; found {path.name!r}.{suggest(path.suffix, SUFFIXES)} "
            f"Try out={str(path.with_suffix(SUFFIXES[0]))!r}."
        )
    if filled(path) and not overwrite:
        raise CheckpointError(f"{str(path)!r} exists. Choose another name, or pass overwrite=True to replace it.")
    require_folder(path)
    return path


@contextmanager
def stored(
    path: Path, n: int, *, obs: pd.DataFrame, names: Sequence[str], about: Mapping[str, Any], sparse: bool = False
) -> Iterator[Result]:
    """An AnnData file that takes rows of X; it is there whole at the end of the block, or not at all.

    Args:
        path: Ends in ``.h5ad`` or ``.zarr``. What was there is replaced.
        n: Number of rows.
        obs: [n, columns].
        names: [g] of the columns of X.
        about: What goes to ``uns``.
        sparse: Store X as CSR.

    Raises:
        CheckpointError: The folder cannot be written, or the disk is full.
    """
    needed = None if sparse else 4 * n * len(names)  # of X in float32; of a sparse one it is not known before
    with writing(path, needed):  # said before the work, where it is known
        if needed is not None and needed + int(obs.memory_usage(deep=True).sum()) + _ROOM > free(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with replacing(path) as part, _root(part, path, needed) as (root, require):
        with writing(path, needed):
            _begin(root, obs, names, about)
            require()
        result: _OnDisk = (_SparseOnDisk if sparse else _DenseOnDisk)(root, n, len(names), path, needed, require)
        yield result
        with writing(path, needed):
            result.finish()


class _OnDisk(Result):
    """X of an open h5ad file or zarr folder."""

    def __init__(self, root: Any, n: int, g: int, path: Path, needed: int | None, require: Callable[[], None]):
        super().__init__(n)
        self.root, self.g, self.path, self.needed, self.h5 = root, g, path, needed, path.suffix == ".h5ad"
        self.require = require

    def put(self, rows: np.ndarray) -> None:
        with writing(self.path, self.needed):
            super().put(rows)
            self.require()

    def finish(self) -> None:
        """Write what comes after the last row."""

    def array(self, group: Any, name: str, shape: tuple[int, ...], dtype: Any, chunks: tuple[int, ...]) -> Any:
        """A new array; one of a single axis may grow."""
        if self.h5:
            most = (None,) if len(shape) == 1 else shape
            return group.create_dataset(name, shape=shape, dtype=dtype, chunks=chunks, maxshape=most)
        return group.create_array(name, shape=shape, dtype=dtype, chunks=chunks)


class _DenseOnDisk(_OnDisk):
    def _put(self, rows: np.ndarray) -> None:
        if self.at == 0:
            rest = _power(_CHUNK // self.g) if self.h5 else max(len(rows), _power(_OBJECT // self.g))
            self.x = self.array(self.root, "X", (self.n, self.g), rows.dtype, (min(self.n, rest), self.g))
            self.x.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        self.x[self.at : self.at + len(rows)] = rows


class _SparseOnDisk(_OnDisk):
    def __init__(self, root: Any, n: int, g: int, path: Path, needed: int | None, require: Callable[[], None]):
        super().__init__(root, n, g, path, needed, require)
        self.crow = np.zeros(n + 1, dtype=np.int64)

    def _put(self, rows: np.ndarray) -> None:
        from scipy.sparse import csr_matrix

        block = csr_matrix(rows)
        if self.at == 0:
            self.x = self.root.create_group("X")
            self.x.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [self.n, self.g]})
            kinds = {"data": block.data.dtype, "indices": np.dtype(np.int32)}
            self.parts = {name: self.array(self.x, name, (0,), dtype, (_RUN,)) for name, dtype in kinds.items()}
        first = int(self.crow[self.at])
        self.crow[self.at + 1 : self.at + 1 + len(rows)] = first + block.indptr[1:]
        for name, part in self.parts.items():
            part.resize((first + block.nnz,))
            part[first:] = getattr(block, name)

    def finish(self) -> None:
        """Write where the rows begin."""
        pointers = self.array(self.x, "indptr", (self.n + 1,), np.int64, (min(_RUN, self.n + 1),))
        pointers[:] = self.crow


@contextmanager
def _root(part: Path, path: Path, needed: int | None) -> Iterator[tuple[Any, Callable[[], None]]]:
    """An empty h5ad file or zarr folder, open for writing, and what raises the error it has met; messages name the path it will have."""
    if part.suffix == ".h5ad":
        with ExitStack() as stack:
            with writing(path, needed):
                file, require = stack.enter_context(h5_file(part))
            yield file, require
            with writing(path, needed):
                stack.close()
        return
    import anndata
    import zarr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # anndata 0.13 says that 0.14 has format 3 only
        form: Any = getattr(anndata.settings, "zarr_write_format", 3)
    with writing(path, needed):
        root = zarr.open_group(str(part), mode="w", zarr_format=form)
    yield root, lambda: None
    if form == 2:  # readers that find consolidated metadata look at nothing else
        with writing(path, needed):
            zarr.consolidate_metadata(str(part))


def _begin(root: Any, obs: pd.DataFrame, names: Sequence[str], about: Mapping[str, Any]) -> None:
    """All of an AnnData file but X."""
    import pandas as pd
    from anndata import AnnData
    from anndata.io import write_elem

    head = AnnData(obs=obs.copy(deep=False), var=pd.DataFrame(index=list(names)), uns=dict(about))
    head.strings_to_categoricals()
    root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    for name, value in (("obs", head.obs), ("var", head.var), ("uns", dict(head.uns))):
        write_elem(root, name, value)
    for name in ("obsm", "varm", "obsp", "varp", "layers"):
        write_elem(root, name, {})


def _power(number: int) -> int:
    """The largest power of two that is not above a number, at least 1."""
    return 1 << (max(1, number).bit_length() - 1)
