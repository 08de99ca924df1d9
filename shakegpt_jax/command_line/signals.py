"""SIGINT and SIGTERM: end a command at once, or let training save its state first."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def exit_on_signal() -> None:
    """From now on, exit silently with 128 plus its number if a signal arrives.

    Python's own KeyboardInterrupt is printed and ignored if it is raised inside a callback, such
    as those that JAX registers with the garbage collector.
    """
    for number in _SIGNALS:
        signal.signal(number, lambda number, frame: os._exit(128 + number))


class StopSignal:
    """The first signal that arrived inside `record_signal`, if any."""

    received: int | None = None

    def record(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: record it, and let the next one kill the process."""
        self.received = number
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)


@contextmanager
def record_signal() -> Iterator[StopSignal]:
    """Record the first signal inside the `with` block; a second one kills the process."""
    stop = StopSignal()
    before = {number: signal.signal(number, stop.record) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
