"""The one exception that a user is meant to see."""


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where, and how to mend it.

    Stage scripts print it without a traceback and exit with status 1. Names and values of the input may hold
    line breaks or the codes that move a terminal's cursor; they are shown escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))
