"""``trifold check``: what a file holds, what is wrong with it, and the schema that would be made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trifold.cli import show
from trifold.cli.files import cells_of
from trifold.cli.pairs import with_blanks
from trifold.data import Findings, Schema, Source
from trifold.data import check as look
from trifold.data.check import Tally
from trifold.errors import listing


def inspect(path: Path, x: str | None, roles: Mapping[str, Any]) -> None:
    """Print all of it; a schema that cannot be made raises after the tables, so that they can be read.

    Args:
        path: The data.
        x: Which matrix.
        roles: Keyword arguments of ``Schema.of``.

    Raises:
        DataError, SchemaError: As ``Schema.of``.
    """
    source = cells_of(path, x)
    found = look(source)
    _file(source, found, path)
    _findings(found)
    schema = Schema.of(source, **with_blanks(roles, source.obs))
    show.describe(schema)
    _crossed(source.obs, schema)
    if not schema.roles:
        show.say("No column has a role yet: pass --condition, --invariant, --spurious or --label to see the schema with them.")


def _file(source: Source, found: Findings, path: Path) -> None:
    rows = [("cells × genes", f"{found.shape[0]:,} × {found.shape[1]:,}"), ("matrix", f"{found.where}, {found.dtype}")]
    rows += [("genes", listing(source.genes)), *((name, listing(keys, 10)) for name, keys in source.other.items() if keys)]
    show.table(str(path), ["", ""], rows)
    columns = [(c["name"], c["kind"], c["values"]) for c in show.columns_of(source.obs)]
    show.table("Columns of obs", ["column", "holds", ""], columns)


def _findings(found: Findings) -> None:
    library = [f"{v:,.4g}" for v in np.quantile(found.library, [0, 0.5, 1])]
    faults = (("NaN", found.nan), ("infinite", found.inf), ("negative", found.negative), ("not whole", found.fractional))
    empty = found.empty_cells
    rows = [
        ("values other than zero", f"{100 * found.density:.3g} %"),
        ("sum of a cell", f"{library[0]} least, {library[1]} median, {library[2]} most"),
        *((name, _tally(tally)) for name, tally in faults),
        ("cells without a value", f"{len(empty):,}" + (f" (rows {listing(empty)})" if len(empty) else "")),
        ("genes zero in every cell", f"{len(found.empty_genes):,}"),
    ]
    show.table("Findings", ["", ""], rows)
    if found.hint:
        show.say(found.hint.strip())


def _tally(tally: Tally) -> str:
    if tally.first is None:
        return "none"
    row, gene, value = tally.first
    return f"[bold yellow]{tally.values:,} in {tally.cells:,} cells[/], first: row {row}, gene {gene}, {value:.6g}"


def _crossed(obs: pd.DataFrame, schema: Schema) -> None:
    """Cells of each pair of categories of condition and label, or else of invariant and spurious."""
    for a, b in (("condition", "label"), ("condition", "spurious"), ("invariant", "spurious")):
        for first in schema.roles.get(a, ()):
            for second in schema.roles.get(b, ()):
                if first.name == second.name or not (hasattr(first, "values") and hasattr(second, "values")):
                    continue
                cells = pd.crosstab(obs[second.name].astype(object), obs[first.name].astype(object))
                if cells.shape[1] > 8 or cells.shape[0] > 40:
                    continue
                heads = [str(c) for c in cells.columns]
                rows = [
                    (i, *(f"[yellow]{v}[/]" if v == 0 else v for v in row)) for i, row in zip(cells.index, cells.to_numpy(), strict=True)
                ]
                show.table(f"Cells by {second.name} and {first.name}", [second.name, *heads], rows, numbers=heads)
