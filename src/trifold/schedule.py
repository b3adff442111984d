"""Weights as functions of training progress: ``Constant``, ``Ramp``, ``Cosine``. Dimensionless."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from trifold.errors import SpecError
from trifold.records import Progress
from trifold.spec import Component


class Schedule(Component, ABC):
    """A weight that may change with the share of training that is done."""

    @abstractmethod
    def __call__(self, progress: Progress) -> float:
        """The weight now."""


class Constant(Schedule):
    """Always the same weight.

    Args:
        value: The weight.
    """

    def __init__(self, value: float):
        self.value = value

    def __call__(self, progress: Progress) -> float:
        """The weight now."""
        return self.value


class Ramp(Schedule):
    """Zero, then a straight line, then ``value``.

    Args:
        value: The last weight.
        begin, end: Shares of the planned steps, in [0, 1], between which the weight rises.
        start: The first weight.

    Raises:
        SpecError: Not 0 <= begin <= end <= 1.

    Example:
        >>> [Ramp(2.0, end=0.5)(Progress(step=s, steps=4)) for s in range(5)]
        [0.0, 1.0, 2.0, 2.0, 2.0]
    """

    def __init__(self, value: float, *, begin: float = 0.0, end: float = 0.1, start: float = 0.0):
        _check_span(begin, end)
        self.value = value
        self.begin = begin
        self.end = end
        self.start = start

    def __call__(self, progress: Progress) -> float:
        """The weight now."""
        return self.start + (self.value - self.start) * _share(progress, self.begin, self.end)


class Cosine(Schedule):
    """From ``start`` to ``value`` along half a cosine.

    Args:
        value: The last weight.
        begin, end: Shares of the planned steps, in [0, 1].
        start: The first weight.

    Raises:
        SpecError: Not 0 <= begin <= end <= 1.
    """

    def __init__(self, value: float, *, begin: float = 0.0, end: float = 1.0, start: float = 0.0):
        _check_span(begin, end)
        self.value = value
        self.begin = begin
        self.end = end
        self.start = start

    def __call__(self, progress: Progress) -> float:
        """The weight now."""
        share = 0.5 - 0.5 * math.cos(math.pi * _share(progress, self.begin, self.end))
        return self.start + (self.value - self.start) * share


def weight_now(weight: float | Schedule, progress: Progress) -> float:
    """A number as it is, a schedule at this progress."""
    return weight(progress) if isinstance(weight, Schedule) else float(weight)


def _check_span(begin: float, end: float) -> None:
    if not 0 <= begin <= end <= 1:
        raise SpecError(
            f"A schedule needs 0 <= begin <= end <= 1, as shares of training; found begin={begin}, end={end}. Pass begin=0.0, end=0.5."
        )


def _share(progress: Progress, begin: float, end: float) -> float:
    if progress.fraction >= end:
        return 1.0
    if progress.fraction <= begin:
        return 0.0
    return (progress.fraction - begin) / (end - begin)
