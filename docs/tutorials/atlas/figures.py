"""Runs the page: python figures.py pbmc_3tech_counts.h5ad writes its figures beside it and puts what its blocks print below them."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import warnings
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
BLOCK = re.compile(r"```python\n(.*?)```\n(?:\n```text\n.*?```\n)?", re.DOTALL)


def run(data: str) -> None:
    """Run all blocks with the same names, and write the page again with what they print."""
    names: dict[str, object] = {"path": Path(data).resolve()}
    os.chdir(HERE)
    page = HERE / "README.md"

    def block(found: re.Match[str]) -> str:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(found[1], "README.md", "exec"), names)
        said = printed.getvalue()
        return f"```python\n{found[1]}```\n" + (f"\n```text\n{said}```\n" if said else "")

    page.write_text(BLOCK.sub(block, page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("One argument is needed: the path of pbmc_3tech_counts.h5ad.")
    torch.set_num_threads(1)  # before numba, which else leaves torch all cores
    warnings.simplefilter("ignore")  # a value for "not known" that does not occur, and genes that are zero in every cell
    run(sys.argv[1])
