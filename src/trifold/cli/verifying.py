"""``trifold verify``: what is wrong with a run folder, one line a fault."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from trifold.cli.show import say


def verify_folder(path: Path, *, trust: Sequence[str] = ()) -> None:
    """Say what is wrong with a run folder or a folder of checkpoints, or that it is sound.

    Args:
        path: The folder.
        trust: Classes outside trifold that may be imported.

    Raises:
        typer.Exit: With code 1: something is wrong with it.
    """
    from trifold.loading import verify

    faults = verify(path, trust=trust)
    for fault in faults:
        say(" ".join(fault.split()))
    if faults:
        raise typer.Exit(1)
    say(f"{path} is sound: every file holds the bytes that were written.")
