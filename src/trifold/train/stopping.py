"""Being asked to stop: Ctrl-C and SIGTERM are noted, and acted on after the step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopping:
    """What was asked.

    Attributes:
        signal: Number of the signal that came; 0: none.
    """

    def __init__(self) -> None:
        self.signal = 0

    def note(self, number: int, frame: FrameType | None = None) -> None:
        """A first signal is noted; a second of the same kind acts at once, as without us."""
        self.signal = number
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@contextmanager
def stopping(*, listen: bool) -> Iterator[Stopping]:
    """Inside, Ctrl-C and SIGTERM are noted instead of acted on; the handlers that were there are put back after.

    Args:
        listen: False, or outside of the main thread, where signals do not arrive: nothing changes.
    """
    asked = Stopping()
    if not listen or threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.signal(number, asked.note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
