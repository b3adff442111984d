"""The arguments and options that commands share, with their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Data = Annotated[Path, typer.Argument(exists=True, help="An h5ad file or zarr folder.", show_default=False)]
Run = Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Run folder that fit wrote.", show_default=False)]
Out = Annotated[Path, typer.Option(help="Where the result goes.", show_default=False)]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Missing = Annotated[str, typer.Option(help="Genes of the model that the data lack: error, or zero to take them as zeros.")]
Trust = Annotated[list[str] | None, typer.Option(help="Class outside trifold that may be imported: mylab.cycle:Cycle. Repeatable.")]
X = Annotated[str | None, typer.Option("--x", help="Layer, 'raw' or key of obsm with the values. Default: X.", show_default=False)]
_COLUMN = "Column of obs. Repeatable."
Condition = Annotated[list[str] | None, typer.Option(help=f"{_COLUMN} What is to be predicted: treatment, dose, disease.")]
Invariant = Annotated[list[str] | None, typer.Option(help=f"{_COLUMN} Biology.")]
Spurious = Annotated[list[str] | None, typer.Option(help=f"{_COLUMN} Technique: batch, donor, site.")]
Label = Annotated[list[str] | None, typer.Option(help=f"{_COLUMN} Cell type: what invae is to predict; trvae never trains on it.")]
Unlabelled = Annotated[
    list[str] | None,
    typer.Option(help="Value that means 'not known' in the columns of --invariant and --label. Repeatable.", show_default=False),
]
Unknown = Annotated[
    list[str] | None,
    typer.Option(help="error, zero or marginalise, or role=policy: what becomes of unseen covariates. Repeatable. Default: error."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]


def given(**options: Any) -> dict[str, Any]:
    """Those that are not None; a list of one is its element, as Schema.of takes it."""
    found = {name: value for name, value in options.items() if value not in (None, [])}
    return {name: value[0] if isinstance(value, list) and len(value) == 1 else value for name, value in found.items()}
