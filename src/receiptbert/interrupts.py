"""Stop in good order when asked to: Ctrl-C, SIGTERM and SIGHUP become an exception where that is safe."""

import ctypes
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from receiptbert.errors import Interrupted

PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Interrupts:
    """Within ``raised()`` the ``ending_signals`` raise ``Interrupted``, but not during ``held()``."""

    def __init__(self) -> None:
        self._depth = 0  # of nested `held()`
        self.number = 0
        """The number of the signal that came during ``held()`` and is pending; 0 if there is none."""

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Handle the signals; then restore the previous handlers. Only the main thread gets signals."""
        self.number = 0  # of an earlier run
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in ending_signals()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """The block is not cut off: a signal is acted upon at its end."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if self.number and not self._depth:
            number, self.number = self.number, 0
            raise Interrupted(number)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if not self._depth:
            raise Interrupted(number)
        self.number = number


def ending_signals() -> list[signal.Signals]:
    """Ctrl-C, ``kill`` and a closed terminal, except those that this process was started to ignore: ``nohup``
    has SIGHUP ignored, a shell script SIGINT by what it starts with ``&``."""
    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    return [number for number in signals if signal.getsignal(number) != signal.SIG_IGN]


def end_with_parent() -> None:
    """Have SIGTERM sent to this process when its parent dies, where the system can (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
