"""The errors that a user is meant to read: one line, without a traceback on the command line."""


class InputError(ValueError):
    """Something handed to fastinfogan was wrong: one line saying what, where, and what to do.

    The command line prints it without a traceback and exits with code 2.

    Args:
        message: line breaks in it, as other libraries' messages have them, become spaces.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(line.strip() for line in message.splitlines()))


class TrainingError(RuntimeError):
    """Training cannot go on, through no fault of the input: it diverged.

    The command line prints it without a traceback and exits with code 1.
    """
