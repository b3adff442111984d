"""Writes cells as a sharded zarr folder with the rows shuffled once, so that reading neighbours is reading at random."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from trifold.data.joined import JoinedSource
from trifold.data.matrix import Array, canonical, gather, take_rows
from trifold.data.opening import files_of
from trifold.data.places import is_address, store_at
from trifold.data.source import Source, open
from trifold.data.stored import MARK, read
from trifold.errors import CheckpointError, SpecError, TrifoldWarning
from trifold.outputs import replacing, writing

_BUCKET, _BUCKETS = 1 << 22, 256  # values that are shuffled in memory at once; more of them rather than more files
_CHUNK_VALUES, _SHARD_VALUES = 1 << 18, 1 << 22  # most values in a chunk, and in a shard, which is held in memory while it is written
_WHOLE = float(2**53)  # up to here float64 tells whole numbers apart


def convert(
    inputs: Any,
    out: str | os.PathLike[str],
    *,
    x: str | None = None,
    shuffle: bool = True,
    seed: int = 0,
    shard: int = 32_768,
    chunk: int = 512,
    overwrite: bool = False,
) -> Path:
    """Write cells as a zarr folder (format 3) that :func:`trifold.data.open` and ``anndata.io.read_zarr`` read.

    The matrix becomes CSR without stored zeros, counts in the smallest unsigned integers that hold them, in X or in the layer ``x``.
    ``obs`` gets the columns ``source`` (the file) and ``source_row`` (position in it, from 0), by which one finds back. Memory holds some
    million values, ``obs`` and the row pointers, never the matrix; the disk holds the matrix twice while it is written. The folder appears
    when it is complete.

    Args:
        inputs: Whatever :func:`trifold.data.open` takes; several files become one.
        out: The folder: ``"atlas.zarr"``.
        x: None for X, else a layer, ``"raw"`` or a key of obsm.
        shuffle: Whether rows are put into random order.
        seed: Of that order.
        shard: Rows in a shard, a file on disk; fewer where rows hold many values.
        chunk: Rows in a chunk, the least that is read; fewer where rows hold many values.
        overwrite: Whether a folder that is there is replaced.

    Returns:
        The path of the folder.

    Raises:
        DataError, SchemaError: As :func:`trifold.data.open`.
        SpecError: A shard smaller than a chunk, or a chunk below one row.
        CheckpointError: The folder exists, or cannot be written.
    """
    if not 1 <= chunk <= shard:
        raise SpecError(
            f"chunk must be at least 1 row and shard at least chunk; found chunk={chunk} and shard={shard}. "
            "Leave both out for 512 and 32,768."
        )
    if is_address(os.fspath(out)):
        raise CheckpointError(f"{os.fspath(out)!r} is an address; a store is written to this machine. Write it here, then copy the folder.")
    path = Path(out)
    if path.exists() and not overwrite:
        raise CheckpointError(f"{str(path)!r} exists. Choose another name, or pass overwrite=True to replace it.")
    source = open(inputs, x)
    order = np.random.default_rng([seed, 7]).permutation(source.n) if shuffle else np.arange(source.n)
    obs, var = _obs(source, order), var_of(inputs, source)
    with replacing(path) as part, writing(path):
        scratch = part.with_suffix(".rows")
        try:
            scattered = _scatter(source, order, scratch)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of anndata and zarr, on what their next versions write
                _write(part, source, scattered, obs, var, shard, chunk, {"shuffled": shuffle, "seed": seed})
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return path


def var_of(inputs: Any, source: Source) -> pd.DataFrame:
    """What is known of the genes: var of the first input, by name; only names where there is none."""
    first = inputs[0] if isinstance(inputs, (list, tuple)) else inputs
    if isinstance(first, (str, os.PathLike)):
        first = (files_of(os.fspath(first)) or [os.fspath(first)])[0]
        with store_at(first)() as root:
            found = read(root["raw/var" if source.x == "raw" and "raw" in root else "var"])
    else:
        found = getattr(first.raw if source.x == "raw" and getattr(first, "raw", None) is not None else first, "var", None)
    if isinstance(found, pd.DataFrame) and tuple(map(str, found.index)) == source.genes:
        return found
    return pd.DataFrame(index=pd.Index(source.genes, dtype=object))


class _Scattered:
    """The rows of a source in as many files as it takes to shuffle each in memory.

    Args:
        folder: Where the files lie.
        edges: [k + 1] new positions at which files begin and end.
        genes: Columns.
        lengths: [n] values of each row, in the new order.
        dtype: Of the values.
        small: The smallest dtype that holds the values.
    """

    def __init__(self, folder: Path, edges: Array, genes: int, lengths: Array, dtype: Any, small: Any):
        self.folder, self.edges, self.genes, self.lengths, self.dtype, self.small = folder, edges, genes, lengths, dtype, small

    def blocks(self) -> Iterator[tuple[Array, Array]]:
        """(columns, values) of the rows in the new order, file by file."""
        for k in range(len(self.edges) - 1):
            place = np.fromfile(self.folder / f"{k}.rows", dtype=np.int64)
            col, val = (np.fromfile(self.folder / f"{k}.{name}", dtype=d) for name, d in (("col", np.int32), ("val", self.dtype)))
            crow = np.concatenate([[0], np.cumsum(self.lengths[place])])
            block = take_rows(canonical(crow, col, val, (len(place), self.genes)), np.argsort(place))
            yield block.indices.astype(np.int32, copy=False), block.data.astype(self.small, copy=False)
            for name in ("rows", "col", "val"):
                (self.folder / f"{k}.{name}").unlink()


def _scatter(source: Source, order: Array, folder: Path) -> _Scattered:
    """Read all rows once, in order, and append each to the file of its new neighbours."""
    folder.mkdir()
    rank = np.empty(source.n, dtype=np.int64)
    rank[order] = np.arange(source.n)
    rows = max(1, int(_BUCKET // source.width), -(-source.n // _BUCKETS))
    edges = np.append(np.arange(0, source.n, rows), source.n)
    lengths = np.zeros(source.n, dtype=np.int64)
    largest, whole = 0.0, source.dtype.kind in "iuf"
    for start, block in source.chunks():
        block = block if sp.issparse(block) else sp.csr_matrix(block)
        full = block.data != 0
        kept = np.concatenate([[0], np.cumsum(full)])[block.indptr]
        col, val = block.indices[full].astype(np.int32, copy=False), block.data[full]
        whole = whole and bool((val >= 0).all()) and (val.dtype.kind != "f" or bool((np.rint(val) == val).all()))
        largest = max(largest, float(val.max()) if len(val) else 0.0)
        place = rank[start : start + block.shape[0]]
        lengths[place] = np.diff(kept)
        sorted_rows = np.argsort(place // rows, kind="stable")
        crow, at = gather(kept, sorted_rows)
        place = place[sorted_rows]
        bucket = place // rows
        cuts = np.append(np.flatnonzero(np.diff(bucket, prepend=-1)), len(bucket))
        for a, b in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
            part = at[crow[a] : crow[b]]
            for name, values in (("rows", place[a:b]), ("col", col[part]), ("val", val[part].astype(source.dtype, copy=False))):
                with (folder / f"{bucket[a]}.{name}").open("ab") as file:
                    file.write(values.tobytes())
    native = source.dtype.newbyteorder("=")
    small = np.min_scalar_type(int(largest)) if whole and largest <= _WHOLE else native
    return _Scattered(folder, edges, len(source.genes), lengths, native, small)


def _write(
    where: Path,
    source: Source,
    scattered: _Scattered,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    shard: int,
    chunk: int,
    mark: dict[str, Any],
) -> None:
    import zarr
    from anndata.io import write_elem

    root = zarr.open_group(where, mode="w", zarr_format=3)
    root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0", MARK: mark})
    write_elem(root, "obs", obs)
    write_elem(root, "var", var)
    for name in ("layers", "obsm", "varm", "obsp", "varp", "uns"):
        write_elem(root, name, {})
    group = root.create_group("X" if source.x is None else f"layers/{source.x}")
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [source.n, len(source.genes)]})
    total, width = int(scattered.lengths.sum()), max(1.0, float(scattered.lengths.mean()))
    inner = int(np.clip(chunk * width, 1, _CHUNK_VALUES))
    outer = inner * max(1, min(round(shard / chunk), _SHARD_VALUES // inner))
    rows = source.n + 1
    _array(group, "indptr", rows, np.int64, rows, rows)[:] = np.concatenate([[0], np.cumsum(scattered.lengths)])
    col, val = (_array(group, name, total, dtype, inner, outer) for name, dtype in (("indices", np.int32), ("data", scattered.small)))
    held: list[tuple[Array, Array]] = []
    done = 0
    for block in scattered.blocks():  # written in whole shards: one that is added to is read and written again
        held.append(block)
        count = sum(len(c) for c, _ in held)
        full = count // outer * outer
        if full:
            both = [np.concatenate(parts) for parts in zip(*held, strict=True)]
            col[done : done + full], val[done : done + full] = both[0][:full], both[1][:full]
            held, done = [(both[0][full:], both[1][full:])], done + full
    if done < total:
        rest = [np.concatenate(parts) for parts in zip(*held, strict=True)]
        col[done:], val[done:] = rest
    zarr.consolidate_metadata(root.store)


def _array(group: Any, name: str, total: int, dtype: Any, inner: int, outer: int) -> Any:
    from zarr.codecs import BloscCodec

    return group.create_array(
        name,
        shape=(total,),
        dtype=dtype,
        chunks=(max(1, inner),),
        shards=(max(1, outer),),
        compressors=BloscCodec(cname="lz4", clevel=5, shuffle="shuffle", typesize=np.dtype(dtype).itemsize),
    )


def _obs(source: Source, order: Array) -> pd.DataFrame:
    """Covariates in the new order, with the file and the row that each cell comes from."""
    starts, names = (source.starts, source.wheres) if isinstance(source, JoinedSource) else (np.array([0, source.n]), (source.where,))
    owner = np.searchsorted(starts, order, side="right") - 1
    files = _distinct([name.split(" of ", 1)[-1] for name in names])
    obs = source.obs.iloc[order].copy()
    for name, values in (("source", pd.Categorical.from_codes(owner, categories=files)), ("source_row", order - starts[owner])):
        if name in obs.columns:
            warnings.warn(f"obs has a column {name!r} already; where cells come from is in {name + '_'!r}.", TrifoldWarning, stacklevel=4)
            name += "_"
        obs[name] = values
    text = [c for c in obs.columns if obs[c].dtype == object or isinstance(obs[c].dtype, pd.StringDtype)]
    for column in [c for c in text if obs[c].isna().any()]:
        obs[column] = obs[column].astype("category")  # text with missing values has no other form in the file
    return obs


def _distinct(names: Sequence[str]) -> list[str]:
    """Names of files that differ: repeated ones are numbered."""
    return [f"{name} ({k})" if names.count(name) > 1 else name for k, name in enumerate(names)]
