"""Small random shifts, rotations, shears and scalings, to augment sets of few images.

Drawn by the counter-based generator. The kernel of `real_images` computes the same.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fastinfogan_kernels.inputs.draw import random_functions
from fastinfogan_kernels.philox import Stream

MAX_SHIFT = 2.0 / 28.0  # of the image's height or width
MAX_ROTATION = math.radians(10.0)
MAX_SHEAR = 0.1
MAX_LOG_SCALE = 0.1


def affine_matrices(
    seed: int, step: int, rows: int, height: int, width: int, first_row: int = 0
) -> NDArray[np.float32]:
    """Draw one affine map per image.

    Args:
        seed: the run's.
        step: the iteration's number.
        rows: images in the batch.
        height: of an image, pixels.
        width: of an image, pixels.
        first_row: number of the first row in the global batch.

    Returns:
        float32 (rows, 2, 3), from output to input coordinates as torch's affine_grid takes them:
        -1 to 1 from edge to edge. Shifts up to 1/14 of a side, rotations up to 10 degrees, shears
        up to 0.1, scalings up to 10 % in each direction, all uniform (scalings in the logarithm).
    """
    random = random_functions()
    u = random.uniform(random.words(seed, step, Stream.AUGMENT, rows, 6, first_row))
    angle, shear = MAX_ROTATION * u[:, 0], MAX_SHEAR * u[:, 1]
    scale_x, scale_y = np.exp(MAX_LOG_SCALE * u[:, 2]), np.exp(MAX_LOG_SCALE * u[:, 3])
    cos, sin, aspect = np.cos(angle), np.sin(angle), height / width
    matrices = np.empty((rows, 2, 3), np.float32)
    matrices[:, 0, 0] = scale_x * cos
    matrices[:, 0, 1] = scale_y * (shear * cos - sin) * aspect
    matrices[:, 1, 0] = scale_x * sin / aspect
    matrices[:, 1, 1] = scale_y * (shear * sin + cos)
    # Coordinates span 2 over a side, so a shift of one side is 2.
    matrices[:, 0, 2] = 2.0 * MAX_SHIFT * u[:, 4]
    matrices[:, 1, 2] = 2.0 * MAX_SHIFT * u[:, 5]
    return matrices


def affine(images: Tensor, matrices: Tensor) -> Tensor:
    """Resample images bilinearly; pixels from outside are 0, so scale to [0, 1] first.

    Args:
        images: floating point (B, C, H, W).
        matrices: (B, 2, 3) of the same dtype, see `affine_matrices`.

    Returns:
        The same shape, dtype and memory format.
    """
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", align_corners=False)
    return moved.contiguous(memory_format=torch.channels_last)
