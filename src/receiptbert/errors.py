"""How a program of this project ends before its time."""

import signal


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where, and how to mend it.

    Stage scripts print it without a traceback and exit with status 1.
    """


class Interrupted(KeyboardInterrupt):
    """The process was asked to end by signal ``number``."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
