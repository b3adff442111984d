"""Training: the plan, the loop, the history, checkpoints, several processes."""

from trifold.train.checkpoint import Checkpoints
from trifold.train.fit import fit
from trifold.train.history import History
from trifold.train.launch import first, group, grouped, launch, require, share_of
from trifold.train.plan import Plan
from trifold.train.progress import progress_bar
from trifold.train.together import together

__all__ = [
    "Checkpoints",
    "History",
    "Plan",
    "first",
    "fit",
    "group",
    "grouped",
    "launch",
    "progress_bar",
    "require",
    "share_of",
    "together",
]
