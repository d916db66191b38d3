"""The one error a user is meant to read."""


class InputError(ValueError):
    """Something handed to fastinfogan was wrong: one line saying what, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """
