"""Training: the plan, the loop, the history."""

from trifold.train.fit import fit, launch
from trifold.train.history import History
from trifold.train.plan import Plan
from trifold.train.progress import progress_bar

__all__ = ["History", "Plan", "fit", "launch", "progress_bar"]
