"""A progress bar for people; nothing where nobody looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(epochs: int, *, show: bool) -> Iterator[Callable[[dict[str, float]], None] | None]:
    """A bar over epochs on standard error, with the loss beside it.

    Args:
        epochs: How many there are at most.
        show: False: no bar. True: a bar on a terminal or in a notebook, nothing in a log file.

    Yields:
        What takes each epoch's row of the history, or None without a bar.
    """
    if not show:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not (console.is_terminal or console.is_jupyter):
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    with Progress(*columns, console=console, transient=False) as bar:
        task = bar.add_task("training", total=epochs, loss="")

        def report(row: dict[str, float]) -> None:
            watched = row.get("validation/loss")
            shown = f"loss {row['train/loss']:.1f}" + ("" if watched is None else f", on watched cells {watched:.1f}")
            bar.update(task, completed=row["epoch"] + 1, loss=shown)

        yield report
        bar.update(task, total=bar.tasks[task].completed)
