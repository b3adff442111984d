"""How the C library treats memory that a training step frees."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

_KEPT = 64 << 20  # bytes: the largest matrix that is kept, and the most that is
_TRIM, _MMAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h


@cache
def keep_freed() -> None:
    """Have glibc keep up to 64 MiB of what a step frees for the next step; otherwise every large matrix is faulted in page by page anew.

    Once per process, on Linux with glibc; elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM, _KEPT)
        mallopt(_MMAP, _KEPT)
