"""What a sweep may choose from: ``"8..40"``, ``"1e-4..1e-2:log"``, ``"gaussian|poisson"``."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trifold.errors import SpecError

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")
_FORMS = "8..40 (whole numbers), 0.0..0.5 (numbers), 1e-4..1e-2:log (on a log scale), or a|b|c (one of several)"


@dataclass(frozen=True)
class Range:
    """All numbers between two ends, which belong to it; whole ones if both ends are.

    Args:
        low, high: The ends.
        log: Even on a log scale.
    """

    low: int | float
    high: int | float
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def draw(self, trial: Any, name: str) -> int | float:
        """What an Optuna trial suggests."""
        suggest = trial.suggest_int if self.whole else trial.suggest_float
        found: int | float = suggest(name, self.low, self.high, log=self.log)
        return found

    def read(self, value: Any) -> Any:
        """What is kept of a trial, as the value that it stands for."""
        return value

    @property
    def examples(self) -> list[Any]:
        """Values that the argument has to take."""
        return [self.low, self.high]

    def __str__(self) -> str:
        return f"{self.low}..{self.high}{':log' * self.log}"


@dataclass(frozen=True)
class Options:
    """One of several values.

    Args:
        values: text -> value.
    """

    values: Mapping[str, Any]

    def draw(self, trial: Any, name: str) -> Any:
        """What an Optuna trial suggests."""
        return self.values[trial.suggest_categorical(name, list(self.values))]

    def read(self, value: Any) -> Any:
        """What is kept of a trial, as the value that it stands for."""
        return self.values[value]

    @property
    def examples(self) -> list[Any]:
        """Values that the argument has to take."""
        return list(self.values.values())

    def __str__(self) -> str:
        return "|".join(self.values)


def range_of(name: str, given: str | Sequence[Any]) -> Range | Options:
    """The range or options of a text; the options of a list.

    Args:
        name: Of the argument, for messages.
        given: ``"8..40"``, ``"1e-4..1e-2:log"``, ``"a|b"`` with TOML values (what is not TOML is text), or a list of plain values.

    Raises:
        SpecError: Another form, ends the wrong way round, a log scale from zero or below, or fewer than two options.
    """
    if not isinstance(given, str):
        return _options(name, {str(value): value for value in given}, len(given))
    text = given.strip()
    if "|" in text:
        parts = [part.strip() for part in text.split("|")]
        return _options(name, {part: value_of(part) for part in parts if part}, len(parts))
    ends, colon, scale = text.partition(":")
    low, dots, high = ends.partition("..")
    if not dots or (colon and scale != "log"):
        raise SpecError(f"{name} needs {_FORMS}; found {given!r}.")
    out = Range(number(name, low, given), number(name, high, given), log=bool(colon))
    if not out.low < out.high:
        raise SpecError(f"{name} needs a range from a smaller to a larger number; found {given!r}. Try {name}={high}..{low}.")
    if out.log and not out.low > 0:
        raise SpecError(f"{name} needs a range above 0 on a log scale; found {given!r}. Try {name}={ends}.")
    return out


def value_of(text: str) -> Any:
    """A TOML value; what is none is text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def number(name: str, text: str, given: str) -> int | float:
    """A number; a whole one if it is written as one.

    Args:
        name: Of the argument, for messages.
        text: The number.
        given: What it is a part of, for messages.

    Raises:
        SpecError: It is no number.
    """
    if not _NUMBER.fullmatch(text):
        raise SpecError(f"{name} needs a number, such as 8, 0.5 or 1e-4; found {text!r} in {given!r}. A range is written as {_FORMS}.")
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)


def _options(name: str, values: dict[str, Any], count: int) -> Options:
    if len(values) < 2 or len(values) < count:
        raise SpecError(f"{name} needs at least two different options, none of them empty; found {', '.join(values) or 'none'}.")
    return Options(values)
