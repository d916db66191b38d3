"""Running out of memory, told in one line whoever notices it: Python, NumPy or torch."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fastinfogan.errors import InputError


class OutOfMemoryError(InputError):
    """What was asked for does not fit into this machine's memory."""


@contextmanager
def reporting_out_of_memory(advice: str) -> Iterator[None]:
    """Turn any allocator's error into one that says what to do.

    Raises:
        OutOfMemoryError: with that advice.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise OutOfMemoryError(f"not enough memory; {advice}") from error
    except RuntimeError as error:
        # The CPU's allocator raises nothing more specific.
        if "can't allocate memory" not in str(error):
            raise
        raise OutOfMemoryError(f"not enough memory; {advice}") from error
