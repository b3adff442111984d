"""``torch.compile`` as an option that never stops a run."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from trifold.errors import TrifoldError, TrifoldWarning
from trifold.records import Batch, Progress, Report


def compiled(step: Callable[[Batch, Progress], Report]) -> Callable[[Batch, Progress], Report]:
    """The step, compiled at its first call; if that fails, the step itself from then on, with a warning that says why.

    The graph is cut where a kernel of ours or a sparse operation is called, so what gains is the network between them.

    Args:
        step: (Batch, Progress) -> Report.
    """
    try:
        fast: Any = torch.compile(step, dynamic=True)
    except Exception as error:  # whatever a compiler may raise
        return _without(step, error)
    tried: list[Callable[[Batch, Progress], Report]] = []

    def run(batch: Batch, progress: Progress) -> Report:
        if tried:
            return tried[0](batch, progress)
        state = torch.get_rng_state()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the compiler, about what it leaves out
                out: Report = fast(batch, progress)
            tried.append(fast)
        except TrifoldError:
            raise
        except Exception as error:
            torch.set_rng_state(state)
            tried.append(_without(step, error))
            return step(batch, progress)
        return out

    return run


def _without(step: Callable[[Batch, Progress], Report], error: Exception) -> Callable[[Batch, Progress], Report]:
    first = str(error).strip().splitlines()[:1]
    warnings.warn(
        f"torch.compile failed ({type(error).__name__}: {first[0] if first else 'no message'}); training goes on without it. "
        "It needs a C++ compiler (on CUDA: Triton); leave out compile=True to silence this.",
        TrifoldWarning,
        stacklevel=3,
    )
    return step
