"""How a program of this project ends before its time."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where, and how to mend it.

    Programs print it without a traceback and exit with status 1; see ``one_line_errors``.
    """


class Interrupted(KeyboardInterrupt):
    """The process was asked to end by signal ``number``."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """End the process with one line on stderr and status 1 on a ``UserError``.

    Set ``RECEIPTBERT_DEBUG=1`` to see the traceback instead. Ctrl-C and SIGTERM end it with 128 plus the
    signal's number, as usual.
    """
    try:
        yield
    except UserError as error:
        if os.environ.get("RECEIPTBERT_DEBUG"):
            raise
        sys.exit(f"{program}: error: {error}")
    except Interrupted as interrupted:
        sys.exit(128 + interrupted.number)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
