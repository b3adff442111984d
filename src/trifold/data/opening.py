"""Makes a source of whatever the user holds: AnnData, arrays, frames, files, and collections of those."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from trifold.data.joined import JoinedSource
from trifold.data.matrix import Array, require_numbers, to_csr
from trifold.data.places import is_address, matches
from trifold.data.source import MemorySource, Source, label_of, which
from trifold.data.stored import of_backed, open_path
from trifold.errors import DataError, SchemaError


def opened(data: Any, x: str | None, obs: pd.DataFrame | None) -> Source:
    """The cells of whatever holds them; see :func:`trifold.data.open`."""
    if isinstance(data, Source):
        if x is not None and x != data.x:
            raise SchemaError(f"x={x!r} was asked for, but this source was opened with x={data.x!r}. Open the data again with x={x!r}.")
        return data
    if isinstance(data, (str, os.PathLike)):
        _refuse_obs(obs, "a file")
        files = files_of(os.fspath(data))
        return open_path(os.fspath(data), x) if files is None else _joined(files, x)
    if isinstance(data, (list, tuple)) and data and all(_is_part(part) for part in data):
        _refuse_obs(obs, "each part of a collection")
        return _joined(data, x)
    if hasattr(data, "obs_names") and hasattr(data, "layers"):
        _refuse_obs(obs, "AnnData")
        return _of_anndata(data, x)
    if x is not None and x != "X":
        raise SchemaError(
            f"x={x!r} names a layer, raw or obsm, as only AnnData has; found {type(data).__name__}. Pass AnnData, or leave x out."
        )
    if isinstance(data, pd.DataFrame):
        return MemorySource(_of_frame(data, "the DataFrame"), genes=list(data.columns), obs=_beside(data, obs), where="the DataFrame")
    if sp.issparse(data):
        return MemorySource(data, obs=obs, where="the matrix")
    if isinstance(data, np.ndarray) or hasattr(data, "__array__"):
        return MemorySource(data, obs=obs, where="the array")
    raise DataError(
        "Data must be AnnData, a path of an h5ad file or zarr folder, a list of those, an array, a DataFrame or a scipy sparse matrix; "
        f"found {type(data).__name__}. Convert it with numpy.asarray(...) first."
    )


def files_of(path: str) -> list[str] | None:
    """The files that a pattern or a folder of h5ad files stands for, sorted by name; None for the path of one file or zarr folder.

    Raises:
        DataError: A pattern that no file matches.
    """
    if any(c in path for c in "*?[") and not os.path.exists(path):
        found = matches(path)
        if not found:
            raise DataError(f"No file matches {path!r}. Give a pattern of h5ad files or zarr folders: 'data/*.h5ad'.")
        return found
    if is_address(path) or not os.path.isdir(path) or any((Path(path) / name).exists() for name in ("zarr.json", ".zgroup", ".zattrs")):
        return None
    return sorted(str(p) for p in Path(path).iterdir() if p.suffix == ".h5ad" and not p.name.startswith(".")) or None


def _joined(parts: Any, x: str | None) -> Source:
    sources = [opened(part, x, None) for part in parts]
    return sources[0] if len(sources) == 1 else JoinedSource(sources)


def _is_part(part: Any) -> bool:
    return isinstance(part, (str, os.PathLike, Source)) or (hasattr(part, "obs_names") and hasattr(part, "layers"))


def _of_anndata(data: Any, x: str | None) -> Source:
    group, key = which(x, [k for k in data.layers if k is not None], list(data.obsm.keys()), data.raw is not None, "the AnnData")
    where, other = label_of(group, key), {k: tuple(map(str, getattr(data, k))) for k in ("obsm", "layers", "uns")}
    kept = {"obs": data.obs, "x": None if group == "X" else x, "where": where, "other": other}
    root = data
    while getattr(root, "is_view", False) and getattr(root, "_adata_ref", None) is not None:
        root = root._adata_ref
    matrix = _matrix_of(root, group, key)
    if group != "obsm" and type(getattr(matrix, "group", matrix)).__module__.startswith(("h5py", "zarr")):
        return of_backed(getattr(matrix, "group", matrix), root, data, group, kept)
    if root is not data:  # a view subsets in compiled code, so what it reads is looked at first
        if sp.issparse(matrix):
            to_csr(matrix, where)
        matrix = _matrix_of(data, group, key)
    if matrix is None:
        raise DataError(f"The AnnData has no X. Name a layer: x={next(iter(data.layers), 'counts')!r}.")
    genes = list(data.raw.var_names) if group == "raw" else list(data.var_names)
    if group == "obsm":
        genes = list(matrix.columns) if isinstance(matrix, pd.DataFrame) else [f"{key}_{j}" for j in range(matrix.shape[1])]
    if isinstance(matrix, pd.DataFrame):
        matrix = _of_frame(matrix, where)
    return MemorySource(matrix, genes=genes, **kept)


def _matrix_of(data: Any, group: str, key: str) -> Any:
    return data.X if group == "X" else data.raw.X if group == "raw" else getattr(data, group)[key]


def _of_frame(frame: pd.DataFrame, where: str) -> Array:
    kinds = {str(c): t for c, t in zip(frame.columns, frame.dtypes, strict=True)}
    for name, dtype in kinds.items():
        if not (pd.api.types.is_numeric_dtype(dtype) or pd.api.types.is_bool_dtype(dtype)):
            require_numbers(np.dtype(object) if not isinstance(dtype, np.dtype) else dtype, f"{where}, column {name!r},")
        elif isinstance(dtype, np.dtype):
            require_numbers(dtype, f"{where}, column {name!r},")
    if len(set(kinds.values())) == 1 and isinstance(next(iter(kinds.values())), np.dtype):
        return frame.to_numpy()
    return frame.to_numpy(dtype=np.float64, na_value=np.nan)


def _beside(frame: pd.DataFrame, obs: pd.DataFrame | None) -> pd.DataFrame:
    if obs is None:
        return pd.DataFrame(index=frame.index.astype(str))
    if len(obs) == len(frame) and not obs.index.equals(frame.index):
        raise DataError("The rows of obs must have the names of the DataFrame's rows, in the same order. Use obs=obs.loc[data.index].")
    return obs


def _refuse_obs(obs: pd.DataFrame | None, what: str) -> None:
    if obs is not None:
        raise SchemaError(f"obs= is for arrays, DataFrames and sparse matrices; {what} has its own obs. Leave obs= out.")
