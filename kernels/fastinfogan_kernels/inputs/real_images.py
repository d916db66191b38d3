"""A batch of real images from a resident set, as the networks see it: the input of the D step.

An image's index is computed from (seed, step, row), see `philox`, and so is the affine map by
which it is moved, see `affine_matrices`; nothing of it needs the host. Images that are not resident
are passed batch by batch, in the batch's order.
"""

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fastinfogan_kernels import philox
from fastinfogan_kernels.errors import InputError
from fastinfogan_kernels.inputs.draw import check_step, random_functions, signed
from fastinfogan_kernels.inputs.triton_random import encrypt, image_at, uniform
from fastinfogan_kernels.philox import Stream
from fastinfogan_kernels.runtime.lang import tl, triton
from fastinfogan_kernels.runtime.launch import Implementation, choose, is_recording, launch
from fastinfogan_kernels.runtime.machine import power_of_two
from fastinfogan_kernels.runtime.registry import register

Augmentation = Literal["none", "affine"]

MAX_SHIFT = 2.0 / 28.0  # of the image's height or width
MAX_ROTATION = math.radians(10.0)
MAX_SHEAR = 0.1
MAX_LOG_SCALE = 0.1


def real_images(
    images: Tensor,
    seed: int,
    step: int | Tensor,
    out: Tensor,
    *,
    image_range: tuple[float, float] = (0.0, 1.0),
    augmentation: Augmentation = "none",
    first_row: int = 0,
    all_rows: int | None = None,
    in_order: bool = False,
    impl: Implementation = "auto",
) -> None:
    """Write a step's real images.

    Every image is used once per epoch; epochs are concatenated and cut into batches, see `philox`.

    Args:
        images: the whole set; uint8 (N, height, width, channels), contiguous. With `in_order`, the
            rows of `out`, or more.
        seed: the run's.
        step: the iteration's number, or an int64 tensor () that holds it.
        out: (rows, height, width, channels), contiguous and floating point.
        image_range: the values of pixels 0 and 255.
        augmentation: "affine" moves each image a little, see `affine_matrices`.
        first_row: number of the first row in the step's global batch.
        all_rows: rows of the step's global batch; the rows of `out` if None.
        in_order: row i of `out` is image i; the images have been chosen already.
        impl: "reference", "triton" or "auto", which is the kernel for CUDA tensors.

    Raises:
        InputError: shapes, dtypes or devices do not fit, or `impl` cannot run here.
    """
    philox.require_seed(seed)
    rows = len(out)
    _check(images, step, out)
    if in_order and len(images) < rows:
        raise InputError(f"{rows} rows in order need as many images, not {len(images)}")
    if impl == "native":
        raise InputError("real images have no implementation in C++; use impl='auto'")
    counter, number = (step, 0) if isinstance(step, Tensor) else (None, step)
    run = _real_images_op if choose(impl, images.device) == "triton" else _reference_op
    run(
        images, out, counter, number, seed & 0xFFFFFFFF, seed >> 32, float(image_range[0]),
        float(image_range[1]), augmentation == "affine", first_row,
        rows if all_rows is None else all_rows, in_order,
    )  # fmt: skip


def _check(images: Tensor, step: int | Tensor, out: Tensor) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4 or not images.is_contiguous():
        raise InputError(
            "images must be uint8 (N, height, width, channels) and contiguous, not "
            f"{images.dtype} {tuple(images.shape)}"
        )
    if out.dim() != 4 or out.shape[1:] != images.shape[1:] or out.device != images.device:
        raise InputError(
            f"out must have rows of {tuple(images.shape[1:])} on {images.device}, not "
            f"{tuple(out.shape)} on {out.device}"
        )
    if not out.is_contiguous() or not out.is_floating_point():
        raise InputError(f"out must be contiguous and floating point, not {out.dtype}")
    check_step(step, images.device)
    if not 0 < len(images) <= philox.MAX_SHUFFLED:
        raise InputError(f"a set must have 1 to {philox.MAX_SHUFFLED:,} images, not {len(images)}")


def affine_matrices(
    seed: int, step: int, rows: int, height: int, width: int, first_row: int = 0
) -> NDArray[np.float32]:
    """Draw one affine map per image: a small shift, rotation, shear and scaling.

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


def resample(images: Tensor, matrices: Tensor) -> Tensor:
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


@register("real_images_by_torch", mutates_args=("out",))
def _reference_op(
    images: Tensor, out: Tensor, counter: Tensor | None, step: int, seed_low: int,
    seed_high: int, low: float, high: float, affine: bool, first_row: int, all_rows: int,
    in_order: bool,
) -> None:  # fmt: skip
    """Draw by NumPy; gather, move and scale by torch."""
    if is_recording():
        return
    seed, rows = seed_low | seed_high << 32, len(out)
    number = step if counter is None else int(counter.item())
    if in_order:
        chosen = images[:rows]
    else:
        drawn = philox.shuffled_indices(seed, number * all_rows + first_row, rows, len(images))
        index = torch.from_numpy(drawn).to(images.device, non_blocking=True)
        chosen = images.index_select(0, index)
    wide = torch.promote_types(out.dtype, torch.float32)
    scaled = chosen.to(wide).div_(255.0)
    if affine:
        height, width = images.shape[1:3]
        found = affine_matrices(seed, number, rows, height, width, first_row)
        matrices = torch.from_numpy(found).to(images.device, wide, non_blocking=True)
        scaled = resample(scaled.permute(0, 3, 1, 2), matrices).permute(0, 2, 3, 1)
    out.copy_(scaled if (low, high) == (0.0, 1.0) else scaled.mul_(high - low).add_(low))


@triton.jit
def small_cos_sin(angle):
    """Return cos and sin to 1e-8, for at most 10 degrees.

    CUDA's functions reduce angles of any size, with a table on the stack and in double precision.
    """
    square = angle * angle
    cos = 1.0 - square * (0.5 - square * (1.0 / 24 - square * (1.0 / 720)))
    return cos, angle * (1.0 - square * (1.0 / 6 - square * (1.0 / 120 - square * (1.0 / 5040))))


@triton.jit(do_not_specialize=["step", "seed_low", "seed_high"])
def real_images_kernel(
    images_ptr,  # uint8 (COUNT, HEIGHT, WIDTH, CHANNELS); the batch's rows if IN_ORDER
    out_ptr,  # (rows, HEIGHT, WIDTH, CHANNELS) out
    step,  # int64 () on the device, or a number
    seed_low, seed_high,  # the bits of uint32 in int32
    COUNT, SIDE, FIRST_ROW, ALL_ROWS, HEIGHT, WIDTH,
    ORDER: tl.constexpr, AUGMENT: tl.constexpr,  # streams
    STEP_ON_DEVICE: tl.constexpr, IN_ORDER: tl.constexpr, AFFINE: tl.constexpr,
    CHANNELS: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, MAX_SHIFT: tl.constexpr,
    MAX_ROTATION: tl.constexpr, MAX_SHEAR: tl.constexpr, MAX_LOG_SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Choose, move and scale images: low + (high - low) * pixel / 255.

    Grid: (rows, blocks of an image's values). The rows are FIRST_ROW, FIRST_ROW + 1, ... of a
    step's ALL_ROWS.
    """
    row = FIRST_ROW + tl.program_id(0)
    if STEP_ON_DEVICE:
        step = tl.load(step)
    low, high = seed_low.to(tl.uint32), seed_high.to(tl.uint32)
    if IN_ORDER:
        image = tl.program_id(0).to(tl.int64)
    else:
        # An int32 step has the bits of a uint32.
        position = step.to(tl.uint32).to(tl.int64) * ALL_ROWS + row
        image = image_at(position, COUNT.to(tl.int64), SIDE.to(tl.uint32), ORDER, low, high)
    size = HEIGHT * WIDTH * CHANNELS
    base = images_ptr + image * size
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ok = at < size
    if AFFINE:
        zero = (row & 0).to(tl.uint32)
        block = (zero + row.to(tl.uint32), zero + step.to(tl.uint32), zero + AUGMENT)
        w0, w1, w2, w3 = encrypt(zero, block[0], block[1], block[2], low, high)
        w4, w5, _, _ = encrypt(zero + 1, block[0], block[1], block[2], low, high)
        angle, shear = MAX_ROTATION * uniform(w0), MAX_SHEAR * uniform(w1)
        scale_x, scale_y = tl.exp(MAX_LOG_SCALE * uniform(w2)), tl.exp(MAX_LOG_SCALE * uniform(w3))
        cos, sin = small_cos_sin(angle)
        aspect = HEIGHT.to(tl.float32) / WIDTH.to(tl.float32)
        # From output to input coordinates, both -1 to 1 from edge to edge.
        channel, pixel = at % CHANNELS, at // CHANNELS
        x = (2 * (pixel % WIDTH) + 1).to(tl.float32) / WIDTH - 1.0
        y = (2 * (pixel // WIDTH) + 1).to(tl.float32) / HEIGHT - 1.0
        from_x = scale_x * cos * x + scale_y * (shear * cos - sin) * aspect * y
        from_y = scale_x * sin / aspect * x + scale_y * (shear * sin + cos) * y
        from_x = ((from_x + 2.0 * MAX_SHIFT * uniform(w4) + 1.0) * WIDTH - 1.0) * 0.5
        from_y = ((from_y + 2.0 * MAX_SHIFT * uniform(w5) + 1.0) * HEIGHT - 1.0) * 0.5
        left, top = tl.floor(from_x), tl.floor(from_y)
        right_weight, lower_weight = from_x - left, from_y - top
        column, line = left.to(tl.int32), top.to(tl.int32)
        value = tl.zeros((BLOCK,), tl.float32)
        for corner in tl.static_range(4):
            u, v = column + corner % 2, line + corner // 2
            weight_x = right_weight if corner % 2 == 1 else 1.0 - right_weight
            weight_y = lower_weight if corner // 2 == 1 else 1.0 - lower_weight
            inside = ok & (u >= 0) & (u < WIDTH) & (v >= 0) & (v < HEIGHT)
            found = tl.load(base + (v * WIDTH + u) * CHANNELS + channel, mask=inside, other=0)
            value += found.to(tl.float32) * (weight_x * weight_y)
    else:
        value = tl.load(base + at, mask=ok, other=0).to(tl.float32)
    scaled = value * ((HIGH - LOW) / 255.0) + LOW
    to = out_ptr + tl.program_id(0).to(tl.int64) * size + at
    tl.store(to, scaled.to(out_ptr.dtype.element_ty), mask=ok)


@register("real_images", mutates_args=("out",))
def _real_images_op(
    images: Tensor, out: Tensor, counter: Tensor | None, step: int, seed_low: int,
    seed_high: int, low: float, high: float, affine: bool, first_row: int, all_rows: int,
    in_order: bool,
) -> None:  # fmt: skip
    count, height, width, channels = images.shape
    size = height * width * channels
    block = power_of_two(size, 128, 1024)
    launch(
        real_images_kernel,
        (len(out), triton.cdiv(size, block)),
        images,
        out,
        signed(step) if counter is None else counter,
        signed(seed_low),
        signed(seed_high),
        count,
        philox.shuffle_side(count),
        first_row,
        all_rows,
        height,
        width,
        ORDER=int(Stream.DATA_ORDER),
        AUGMENT=int(Stream.AUGMENT),
        STEP_ON_DEVICE=counter is not None,
        IN_ORDER=in_order,
        AFFINE=affine,
        CHANNELS=channels,
        LOW=low,
        HIGH=high,
        MAX_SHIFT=MAX_SHIFT,
        MAX_ROTATION=MAX_ROTATION,
        MAX_SHEAR=MAX_SHEAR,
        MAX_LOG_SCALE=MAX_LOG_SCALE,
        BLOCK=block,
        num_warps=4,
        read=(counter, images[: len(out)]),
        written=(out,),
    )
