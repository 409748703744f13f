"""How a program of this project ends on an error or a signal."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

# How to repair what is in data/tokenized, and what is in a checkpoint.
PRETOKENIZE_AGAIN = "run `dvc repro pretokenize`"
TAKE_AGAIN = "restore it with `dvc repro`, or download it again"

DEBUG = "RECEIPTBERT_DEBUG"  # the variable that brings tracebacks back


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where, and how to fix it.

    Programs print it without a traceback and exit with status 1; see ``one_line_errors``. Names and values of
    the input may hold line breaks or the codes that move a terminal's cursor; they are shown escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(line: str) -> str:
    """``line`` with its line breaks and codes of a terminal escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


class Interrupted(KeyboardInterrupt):
    """The process was asked to end by signal ``number``."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def discard(stream: TextIO) -> None:
    """Drop what is left for a stream that cannot be written to: Python would retry at exit, complain, and end
    with status 120."""
    if not stream.closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def one_line_errors(program: str, explain: Callable[[Exception], str | None]) -> Iterator[None]:
    """End the process with one line on stderr and status 1 on errors that ``explain`` has a line for.

    Set ``RECEIPTBERT_DEBUG=1`` to see the traceback instead. Ctrl-C and other signals end it with 128 plus
    the signal's number, as usual.
    """
    try:
        yield
    except Interrupted as interrupted:
        sys.exit(128 + interrupted.number)
    except KeyboardInterrupt:
        if sys.stderr is not None:  # closed; `print` would take stdout instead
            print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        line = explain(error)
        if line is None or os.environ.get(DEBUG):
            raise
        sys.exit(f"{program}: error: {line}")
