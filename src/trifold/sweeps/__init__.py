"""Sweeps: choosing arguments by many trainings."""

from trifold.sweeps.ranges import Options, Range, range_of
from trifold.sweeps.trials import Sweep, sweep

__all__ = ["Options", "Range", "Sweep", "range_of", "sweep"]
