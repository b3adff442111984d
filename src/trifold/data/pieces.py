"""Pieces of stored arrays, read in as few calls as the format allows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from trifold.data.matrix import Array

_SELECTED = 1024  # pieces in one HDF5 selection: the cost of building one grows faster than their number


def ranges(starts: Array, stops: Array) -> Array:
    """[n] int64 the numbers from each start up to its stop, one range after the other."""
    length = (stops - starts).astype(np.int64)
    ends = np.cumsum(length)
    return np.repeat(starts - ends + length, length) + np.arange(ends[-1] if len(ends) else 0)


def read_pieces(values: Any, starts: Array, stops: Array, *, at_once: int = 1) -> Array:
    """Pieces of an HDF5 data set or zarr array along its first axis, one after the other.

    Args:
        values: [n, ...] the stored array.
        starts, stops: [k] where each piece begins and ends; ascending, without overlap.
        at_once: Reads of zarr that are under way together, for stores that answer slowly.

    Returns:
        [sum of lengths, ...] in the stored dtype and the machine's byte order.
    """
    ends = np.concatenate([[0], np.cumsum(stops - starts)]).astype(np.int64)
    out = np.empty((int(ends[-1]), *values.shape[1:]), dtype=np.dtype(values.dtype).newbyteorder("="))
    if not out.size:
        return out
    if hasattr(values, "id"):
        for k in range(0, len(starts), _SELECTED):
            one = slice(k, k + _SELECTED)
            _read_h5(values, starts[one], stops[one], out[ends[k] : ends[min(k + _SELECTED, len(starts))]])
        return out

    def read(k: int) -> None:
        out[ends[k] : ends[k + 1]] = values[int(starts[k]) : int(stops[k])]

    if at_once > 1 and len(starts) > 1:
        with ThreadPoolExecutor(min(at_once, len(starts))) as pool:
            list(pool.map(read, range(len(starts))))
    else:
        for k in range(len(starts)):
            read(k)
    return out


def _read_h5(values: Any, starts: Array, stops: Array, out: Array) -> None:
    """All pieces in one call, which reads each chunk once."""
    import h5py

    rest = values.shape[1:]
    space = values.id.get_space()
    space.select_none()
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        if stop > start:
            space.select_hyperslab((start, *(0 for _ in rest)), (1,) * (1 + len(rest)), block=(stop - start, *rest), op=h5py.h5s.SELECT_OR)
    if out.size:
        values.id.read(h5py.h5s.create_simple(out.shape), space, out)
