"""Every error that a user can cause.

::

    TrifoldError
    ├── SchemaError        (ValueError)    a column, role or category that is not what was asked for
    ├── DataError          (ValueError)    values, names or indices of the data that cannot be used
    │   └── DtypeError     (TypeError)     a matrix whose dtype holds no numbers that we can use
    ├── SpecError          (ValueError)    an argument of a component, preset or configuration
    ├── ShapeError         (ValueError)    tensors that do not fit together
    ├── NotFittedError     (RuntimeError)  a method that needs a trained model
    ├── TrainingError      (RuntimeError)  training that cannot go on; names the step and the term
    ├── Interrupted        (SystemExit)    training was asked to stop and wrote a checkpoint; exit code 128 + signal
    ├── DeviceError        (RuntimeError)  a device that is asked for and absent
    ├── EvaluationError    (ValueError)    groups that cannot be scored
    ├── CheckpointError    (OSError)       a folder or file that cannot be written
    └── FormatError        (ValueError)    a saved file of the wrong form or version
        └── CorruptModelError              a saved file whose bytes are not those that were written

    TrifoldWarning         (UserWarning)   something was left out or cannot be identified; the run goes on

A message has three parts: what was needed, what was found, what to type.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

COPY = "Copy the run again from where it was saved."  # what to do about a saved file that is damaged


class TrifoldError(Exception):
    """Base of every error that a user can cause."""


class SchemaError(TrifoldError, ValueError):
    """A column, role or category is not what was asked for."""


class DataError(TrifoldError, ValueError):
    """Values, names or indices of the data cannot be used."""


class DtypeError(DataError, TypeError):
    """A matrix has a dtype that holds no numbers that we can use."""


class SpecError(TrifoldError, ValueError):
    """An argument of a component, preset or configuration is wrong."""


class ShapeError(TrifoldError, ValueError):
    """Tensors do not fit together."""


class NotFittedError(TrifoldError, RuntimeError):
    """A method needs a trained model."""


class TrainingError(TrifoldError, RuntimeError):
    """Training cannot go on.

    Args:
        message: What happened and what to type.
        step: The optimiser step at which it happened.
        term: The summand of the objective, or ``"gradient"``.
    """

    def __init__(self, message: str, *, step: int | None = None, term: str | None = None):
        super().__init__(message)
        self.step = step
        self.term = term


class Interrupted(TrifoldError, SystemExit):  # noqa: N818
    """Training was asked to stop, finished its step and wrote a checkpoint. Uncaught, the process ends with code 128 + signal.

    Args:
        message: Where the checkpoint is and what to type.
        signal: Number of the signal: 2 for Ctrl-C (code 130), 15 for a cluster's request to end (code 143).
    """

    def __init__(self, message: str, *, signal: int):
        super().__init__(message)
        self.signal = signal
        self.code = 128 + signal


class DeviceError(TrifoldError, RuntimeError):
    """A device is asked for and absent."""


class EvaluationError(TrifoldError, ValueError):
    """Groups of cells cannot be scored."""


class CheckpointError(TrifoldError, OSError):
    """A folder or file cannot be written."""


class FormatError(TrifoldError, ValueError):
    """A saved file has the wrong form or version."""


class CorruptModelError(FormatError):
    """A saved file does not hold the bytes that were written."""


class TrifoldWarning(UserWarning):
    """Something was left out, or cannot be identified; the run goes on."""


def suggest(word: object, options: Iterable[object]) -> str:
    """``" Did you mean 'cell_type'?"`` when one of the options is close to the word, else an empty string."""
    near = difflib.get_close_matches(str(word), [str(o) for o in options], n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def listing(items: Iterable[object], most: int = 5) -> str:
    """The first items, comma separated, with a count of those left out: ``"a, b, c, … (7 more)"``."""
    words = [str(i) for i in items]
    shown = ", ".join(words[:most])
    return shown if len(words) <= most else f"{shown}, … ({len(words) - most} more)"
