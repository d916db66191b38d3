"""The embedded digits: 5,000 MNIST images, 500 a class and sorted by class, shipped in the package.

Source and licence: digits-5000.txt beside the file.
"""

from pathlib import Path

import numpy as np

from fastinfogan.data.image_set import ImageSet

_FILE = Path(__file__).parents[1] / "digits-5000.npz"


def embedded_digits() -> ImageSet:
    """Read the 5,000 digits, uint8 (5000, 28, 28, 1), with their labels, int64 (5000,)."""
    with np.load(_FILE) as arrays:
        return ImageSet(
            "the embedded MNIST digits", arrays["images"], arrays["labels"].astype(np.int64)
        )
