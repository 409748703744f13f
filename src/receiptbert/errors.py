"""The one exception that a user is meant to see, and how a program ends on it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where, and how to mend it.

    Programs print it without a traceback and exit with status 1; see ``one_line_errors``.
    """


@contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """End the process with one line on stderr and status 1 on a ``UserError``.

    Set ``RECEIPTBERT_DEBUG=1`` to see the traceback instead.
    """
    try:
        yield
    except UserError as error:
        if os.environ.get("RECEIPTBERT_DEBUG"):
            raise
        sys.exit(f"{program}: error: {error}")
