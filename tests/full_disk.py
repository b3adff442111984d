"""A disk that is full after so many bytes of a file."""

from __future__ import annotations

from contextlib import contextmanager

import pytest


@contextmanager
def limited(size: int):
    """No file may grow beyond so many bytes: the kernel's own refusal (EFBIG), as of a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
