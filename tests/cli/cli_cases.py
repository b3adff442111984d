"""A small study on disk, a run trained on it, and a way to call the command line."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner, Result

import trifold
from trifold.cli import app

HELD = {"condition": "drug", "cell_type": "type_1"}


def trifold_(*arguments: object) -> Result:
    """The command line's result; an exception that is not an exit is raised."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def study(folder: Path) -> Path:
    """320 cells x 60 genes, three types, control and drug."""
    path = folder / "data.h5ad"
    trifold.simulate(320, 60, types=3, conditions=("control", "drug"), depth=1.5, responding=0.4, seed=3).adata.write_h5ad(path)
    return path


def fit(data: Path, out: Path, *more: object) -> Result:
    held = [f"--hold-out={column}={value}" for column, value in HELD.items()]
    return trifold_("fit", data, "--condition", "condition", *held, "--out", out, "--epochs", 3, *more)


def words(text: str) -> str:
    """Text with every run of white space as one blank: rich wraps where the terminal ends."""
    return " ".join(text.split())
