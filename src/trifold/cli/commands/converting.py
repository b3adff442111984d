"""``convert``: files of cells as one store that is read in pieces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trifold.cli.options import Force, X


def convert(
    inputs: Annotated[
        list[str], typer.Argument(help="h5ad files, zarr folders, a folder of h5ad files, or addresses.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(help="The folder that is written: atlas.zarr.", show_default=False)],
    x: X = None,
    shuffle: Annotated[bool, typer.Option(help="Put the rows into random order.")] = True,
    seed: Annotated[int, typer.Option(help="Of that order.")] = 0,
    shard: Annotated[int, typer.Option(help="Rows in a file of the store.")] = 32_768,
    chunk: Annotated[int, typer.Option(help="Rows in a chunk, the least that is read.")] = 512,
    force: Force = False,
) -> None:
    """Write cells to one sharded .zarr with shuffled rows, which is read in pieces as they are needed; several files become one.

    For instance: trifold convert donor1.h5ad donor2.h5ad atlas.zarr
    """
    from trifold.cli.converting import write_store

    write_store(inputs, out, x=x, shuffle=shuffle, seed=seed, shard=shard, chunk=chunk, force=force)
