"""The one exception that a user is meant to see."""


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where, and how to mend it.

    Stage scripts print it without a traceback and exit with status 1.
    """
