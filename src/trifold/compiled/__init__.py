"""Compiled CPU kernels, and the choice between them and plain PyTorch.

The kernels are compiled by numba when first used (some seconds, once per installation: the result is kept beside the source or in numba's
cache). ``TRIFOLD_KERNELS=plain`` in the environment, or :func:`plain_kernels` around a block, asks for plain PyTorch instead, which gives
the same numbers up to rounding.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

from trifold.errors import SpecError

_plain: ContextVar[bool] = ContextVar("plain", default=False)


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Plain PyTorch inside the block, on every device."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def kernels_wanted() -> bool:
    """Whether kernels other than plain PyTorch may be used.

    Raises:
        SpecError: The environment asks for something unknown.
    """
    asked = os.environ.get("TRIFOLD_KERNELS", "auto")
    if asked not in ("auto", "plain"):
        raise SpecError(f"The environment variable TRIFOLD_KERNELS needs 'auto' or 'plain'; found {asked!r}. Unset it for 'auto'.")
    return asked == "auto" and not _plain.get()


def compiled() -> bool:
    """Whether the compiled CPU kernels are wanted and can be had."""
    return kernels_wanted() and _numba()


@cache
def _numba() -> bool:
    try:
        import numba  # noqa: F401
    except ImportError as error:
        warnings.warn(
            f"numba cannot be imported ({error}): plain PyTorch is used, and training on counts takes several times as long. "
            "Type: pip install -U numba",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True
