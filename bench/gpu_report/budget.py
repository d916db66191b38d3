"""How the minutes are shared out."""

from collections.abc import Sequence
from dataclasses import dataclass

CLOSING = 12.0
"""Seconds kept for the page and the table."""
_KILLED = 3.0
"""Seconds that a stage which had to be killed takes beyond its limit."""


@dataclass(frozen=True)
class Share:
    """What a stage may take.

    Attributes:
        name: the stage's.
        weight: its part of the time, beside the other stages'.
        least: seconds below which it is not worth starting.
        most: seconds that it may take of however many minutes; None for any number.
    """

    name: str
    weight: float
    least: float = 5.0
    most: float | None = None


def allowance(left: float, coming: Sequence[Share]) -> float:
    """Seconds for the first of the coming stages; what it leaves is shared by those behind it.

    Args:
        left: seconds until everything must be done.
        coming: the stages that are yet to run, in their order.

    Returns:
        Its limit; 0 if it cannot be reached.
    """
    share = coming[0]
    usable = left - CLOSING - _KILLED
    seconds = usable * share.weight / sum(each.weight for each in coming)
    # Whoever needs a little more than its part to be of use may take it from those behind.
    seconds = min(max(seconds, share.least), usable)
    if share.most is not None:
        seconds = min(seconds, share.most)
    return seconds if seconds >= share.least else 0.0
