"""Cells in, results out: what fits into memory is read once, and an output is there whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trifold.errors import CheckpointError, SpecError, suggest
from trifold.outputs import filled, replacing, require_folder, writing

if TYPE_CHECKING:
    from trifold.data import Source

_IN_MEMORY = 2**30  # bytes of a file on disk up to which its matrix is read whole; larger ones are read in blocks


def cells_of(path: Path, x: str | None = None) -> Source:
    """The cells of an h5ad file or zarr folder, in memory unless the file is larger than 1 GiB.

    Args:
        path: Of the file or folder.
        x: None for X, else a layer, ``"raw"`` or a key of obsm.

    Raises:
        DataError, SchemaError: As :func:`trifold.data.open`.
    """
    from trifold.data import open

    source = open(path, x)
    return in_memory(source) if path.is_file() and path.stat().st_size <= _IN_MEMORY else source


def in_memory(source: Source, *, rows: Any = None, columns: Any = None) -> Source:
    """All, or some rows and columns, of a source in memory.

    Args:
        source: Where the cells are.
        rows: [n] positions of cells; None: all.
        columns: [g] positions of genes; None: all.
    """
    import numpy as np

    from trifold.data.source import MemorySource

    block = source.take(slice(0, source.n) if rows is None else np.asarray(rows))
    return MemorySource(
        block if columns is None else block[:, columns],
        genes=source.genes if columns is None else [source.genes[j] for j in columns],
        obs=source.obs if rows is None else source.obs.iloc[rows],
        x=source.x,
        where=source.where,
        other=source.other,
    )


def require_suffix(path: Path, suffixes: tuple[str, ...], *, option: str = "--out") -> None:
    """Refuse an output whose name does not end in one of the formats that can be written.

    Raises:
        SpecError: It does not.
    """
    if path.suffix not in suffixes:
        raise SpecError(
            f"{option} needs a name that ends in {' or '.join(suffixes)}; found {path.name!r}.{suggest(path.suffix, suffixes)} "
            f"Try {option} {path.with_suffix(suffixes[0])}."
        )


def require_free(path: Path, *, force: bool) -> None:
    """Refuse an output that exists, unless it is to be replaced, or that has no folder to lie in: before the work, not after.

    Raises:
        CheckpointError: It exists, or its folder does not or cannot be written to.
    """
    if filled(path) and not force:
        raise CheckpointError(f"{str(path)!r} exists. Choose another name, or pass --force to replace it.")
    require_folder(path)


def write(path: Path, writer: Callable[[Path], Any]) -> Path:
    """Write a file under a temporary name beside it, then rename it.

    Args:
        path: Where it goes; its folder is made. What was there is replaced.
        writer: Writes to the path that it is given, which ends as ``path`` does.

    Raises:
        CheckpointError: The disk is full, or the folder cannot be written.
    """
    with replacing(path) as part, writing(path):
        writer(part)
    return path
