"""Minibatches of cells in any order, read in large windows, ahead of their use where cells are on disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from trifold.data.cells import Cells, rows_of
from trifold.data.matrix import Array
from trifold.data.source import positions
from trifold.errors import DataError, TrifoldError
from trifold.records import Batch


class Reader:
    """Minibatches equal to those of ``cells.batch(index)``, bit for bit, for each index array in turn.

    Consecutive index arrays are gathered until a window is full; the window is read once, from the first row to the last, and minibatches
    are made of it in memory. Where cells are on disk, a thread reads the next window while the present one is in use.

    Args:
        cells: The cells.
        indices: Arrays of positions in these cells. Taken up as windows are filled, in the thread that iterates.
        window: Cells in a window; None: ``cells.window``, which no window exceeds. A larger index array is a window of its own.
        ahead: Windows read before they are needed, so that ``ahead`` + 1 are in memory; 0: none, without a thread.

    Raises:
        DataError: A window below one cell or ``ahead`` below 0. While iterating: cells cannot be read, or what ``cells.batch`` raises.
    """

    def __init__(self, cells: Cells, indices: Iterable[Array], *, window: int | None = None, ahead: int = 1):
        if window is not None and window < 1:
            raise DataError(f"window must be at least 1 cell; found {window}. Leave it out for the default.")
        if ahead < 0:
            raise DataError(f"ahead must be at least 0 windows; found {ahead}. Leave it out for 1.")
        self.cells, self.indices, self.ahead = cells, indices, ahead
        self.window = cells.window if window is None else min(window, cells.window)

    def __iter__(self) -> Iterator[Batch]:
        if self.cells.block is None or self.ahead == 0:
            for window in self._windows():
                yield from self._served(window, self._read(np.concatenate(window)))
            return
        with ThreadPoolExecutor(1, thread_name_prefix="trifold-reader") as thread:  # leaving waits for the read that is under way
            windows = self._windows()
            waiting: deque[tuple[list[Array], Future[Any]]] = deque()
            try:
                self._ask(thread, windows, waiting)
                while waiting:
                    window, read = waiting.popleft()
                    values = read.result()  # raises what the thread raised
                    del read  # it holds the values, too
                    self._ask(thread, windows, waiting)
                    yield from self._served(window, values)
                    del values
            finally:
                for _, read in waiting:
                    read.cancel()

    def _ask(self, thread: ThreadPoolExecutor, windows: Iterator[list[Array]], waiting: deque[tuple[list[Array], Future[Any]]]) -> None:
        while len(waiting) < self.ahead:
            window = next(windows, None)
            if window is None:
                return
            waiting.append((window, thread.submit(self._read, np.concatenate(window))))

    def _read(self, index: Array) -> Any:
        try:
            return self.cells.values(index)
        except (TrifoldError, MemoryError):
            raise
        except Exception as error:  # of a disk, a network, or a Source of one's own
            raise DataError(
                f"{len(index)} cells of {self.cells.schema.x or 'X'}, rows {index.min()} to {index.max()}, could not be read: "
                f"{type(error).__name__}: {error}. "
                "Check that the file is still there and whole; a run with checkpoints goes on with resume=True."
            ) from error

    def _served(self, window: list[Array], values: Any) -> Iterator[Batch]:
        start = 0
        if self.cells.schema.sparse and len(window) > 1 and self.cells.block is None:  # windows from disk are larger
            values = rows_of(values, sparse=True)
        for index in window:
            yield self.cells.assemble(values, index, start)
            start += len(index)

    def _windows(self) -> Iterator[list[Array]]:
        """Index arrays gathered until they fill a window, in cells or in stored values."""
        most = 2 * self.window * self.cells.width  # values; cells differ, so a window may hold more than its share, not any number
        held: list[Array] = []
        count, values = 0, 0
        for index in self.indices:
            index = positions(index, self.cells.n)
            more = self.cells.stored(index)
            if held and (count + len(index) > self.window or values + more > most):
                yield held
                held, count, values = [], 0, 0
            held.append(index)
            count, values = count + len(index), values + more
        if held:
            yield held


def batches(cells: Cells, indices: Iterable[Array], *, window: int | None = None, ahead: int = 1) -> Iterator[Batch]:
    """Minibatches of some cells, in the order of the index arrays; see :class:`Reader`.

    Args:
        cells: The cells.
        indices: Arrays of positions in these cells: ``sampler.epoch(k)``.
        window, ahead: As for :class:`Reader`.
    """
    return iter(Reader(cells, indices, window=window, ahead=ahead))
