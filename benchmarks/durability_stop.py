"""``Stop``: a weight of 1 that sends this process a signal during a step; in a file of its own, so that its path is always the same."""

from __future__ import annotations

import os
import signal

from trifold.records import Progress
from trifold.schedule import Schedule


class Stop(Schedule):
    """The weight 1, always.

    Attributes:
        at: Step of training, from 0, during which the signal is sent; None: never.
        signal: Which.
    """

    def __init__(self) -> None:
        self.at: int | None = None
        self.signal: int = signal.SIGTERM

    def __call__(self, progress: Progress) -> float:
        """1."""
        if progress.steps > 1 and progress.step == self.at:  # of one step are passes that only look
            os.kill(os.getpid(), self.signal)
        return 1.0
