"""``trifold convert``: files of cells to one zarr folder that trains at the speed of memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trifold.cli import show
from trifold.cli.files import require_free, require_suffix


def write_store(inputs: Sequence[str], out: Path, *, x: str | None, shuffle: bool, seed: int, shard: int, chunk: int, force: bool) -> None:
    """One zarr folder of all inputs, and what is in it to the screen.

    Raises:
        TrifoldError: As :func:`trifold.data.convert.convert`, or an output that cannot be written.
    """
    from trifold.data import open
    from trifold.data.convert import convert

    require_suffix(out, (".zarr",), option="The last argument")
    require_free(out, force=force)
    given = inputs[0] if len(inputs) == 1 else list(inputs)
    path = convert(given, out, x=x, shuffle=shuffle, seed=seed, shard=shard, chunk=chunk, overwrite=force)
    made = open(path, x)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    order = "in random order" if shuffle else "in their order"
    show.say(f"{path}: {made.n:,} cells {order}, {len(made.genes):,} genes, values as {made.dtype}, {size / 2**20:,.1f} MiB")
