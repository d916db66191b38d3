"""Errors for users: one line, without a traceback on the command line."""


class InputError(ValueError):
    """An argument or a file was wrong: one line saying what, where, and what to do.

    The command line prints it without a traceback and exits with code 2.

    Args:
        message: its line breaks become spaces.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(line.strip() for line in message.splitlines()))


class TrainingError(RuntimeError):
    """Training cannot go on, through no fault of the input: it diverged.

    The command line prints it without a traceback and exits with code 1.
    """
