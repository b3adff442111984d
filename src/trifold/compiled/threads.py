"""Runs a kernel over parts of its rows, on as many threads as torch may use."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

_ENTRIES = 65_536  # of a matrix, at least, for each thread: to wake one takes about as long as a tenth of that


def in_parts(kernel: Callable[[int, int], None], count: int, entries: int) -> None:
    """Call ``kernel(first, last)`` so that all of 0 .. count is done; what it does for one item must not depend on the others.

    Args:
        kernel: Must release the interpreter's lock.
        count: Number of items.
        entries: Number of matrix entries that all of them have, which says how many threads are worth waking.
    """
    parts = max(1, min(torch.get_num_threads(), count, entries // _ENTRIES))
    if parts == 1:
        kernel(0, count)
        return
    ends = [count * k // parts for k in range(parts + 1)]
    others = [_pool(parts - 1).submit(kernel, ends[k], ends[k + 1]) for k in range(1, parts)]
    kernel(0, ends[1])
    for other in others:
        other.result()


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="trifold")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked process has none of its parent's threads
