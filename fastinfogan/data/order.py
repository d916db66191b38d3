"""The order of the images: a pure function of (seed, step)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastinfogan import shuffle
from fastinfogan.errors import InputError


@dataclass(frozen=True)
class EpochOrder:
    """Which images a step sees: shuffled epochs laid end to end and cut into batches.

    Every image is seen once per epoch; a batch may hold the end of one epoch and the start of the
    next, so no image is ever dropped. The shuffle is a formula, see `fastinfogan.shuffle`.

    Attributes:
        count: images in the set.
        batch_size: images in a step.
        seed: the run's.
    """

    count: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError("a set of no images has no order")

    def indices(self, step: int) -> NDArray[np.int64]:
        """Indices of the images of a step, int64 (batch_size,)."""
        return shuffle.indices(self.seed, step * self.batch_size, self.batch_size, self.count)
