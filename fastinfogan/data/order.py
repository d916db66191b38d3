"""The order of the images: a pure function of (seed, step)."""

import numpy as np
from numpy.typing import NDArray

from fastinfogan.errors import InputError
from fastinfogan.kernels.draw import by
from fastinfogan.philox import Stream


def permutation(
    seed: int, epoch: int, count: int, stream: Stream = Stream.DATA_ORDER
) -> NDArray[np.int64]:
    """The shuffle of an epoch: int64 (count,), by sorting one 64-bit Philox key per image."""
    words = by().words(seed, epoch, stream, count, 2, 0).astype(np.uint64)
    keys = words[:, 0] << np.uint64(32) | words[:, 1]
    return np.argsort(keys, kind="stable")


class EpochOrder:
    """Which images a step sees: shuffled epochs laid end to end and cut into batches.

    Every image is seen once per epoch; a batch may hold the end of one epoch and the start of the
    next, so no image is ever dropped.

    Args:
        count: images in the set.
        batch_size: images in a step.
        seed: the run's.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        if count < 1:
            raise InputError("a set of no images has no order")
        self._count = count
        self._batch_size = batch_size
        self._seed = seed
        self._epochs: dict[int, NDArray[np.int64]] = {}

    def indices(self, step: int) -> NDArray[np.int64]:
        """Indices of the images of a step, int64 (batch_size,)."""
        first = step * self._batch_size
        epoch, place = divmod(np.arange(first, first + self._batch_size), self._count)
        chosen = np.empty(self._batch_size, np.int64)
        for number in range(int(epoch[0]), int(epoch[-1]) + 1):
            here = epoch == number
            chosen[here] = self._epoch(number)[place[here]]
        self._epochs = {e: p for e, p in self._epochs.items() if e >= epoch[-1]}
        return chosen

    def _epoch(self, number: int) -> NDArray[np.int64]:
        if number not in self._epochs:
            self._epochs[number] = permutation(self._seed, number, self._count)
        return self._epochs[number]
