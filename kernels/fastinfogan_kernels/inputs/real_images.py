"""A batch of real images from a resident set, as the networks see it: the input of the D step.

reference: NumPy draws, torch gathers, moves and scales. triton: one launch, which computes each
image's number from (seed, step, row), so that nothing of it needs the host. A set that is not
resident is handed over batch by batch, its rows in the batch's order.
"""

from typing import Literal

import torch
from torch import Tensor

from fastinfogan_kernels import philox, shuffle
from fastinfogan_kernels.errors import InputError
from fastinfogan_kernels.inputs import augment
from fastinfogan_kernels.inputs.draw import signed
from fastinfogan_kernels.inputs.real_images_kernel import real_images_kernel
from fastinfogan_kernels.philox import Stream
from fastinfogan_kernels.runtime.backend import Implementation, choose
from fastinfogan_kernels.runtime.lang import triton
from fastinfogan_kernels.runtime.launch import is_recording, launch
from fastinfogan_kernels.runtime.machine import power_of_two
from fastinfogan_kernels.runtime.registry import register

Augmentation = Literal["none", "affine"]


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

    Every image is seen once per epoch, epochs laid end to end and cut into batches, see
    `fastinfogan_kernels.shuffle`.

    Args:
        images: uint8 (N, height, width, channels), contiguous: the whole set; with `in_order`, N or
            more of the rows of `out`.
        seed: the run's.
        step: the iteration's number, or an int64 tensor of no dimension that holds it.
        out: (rows, height, width, channels), contiguous and floating point.
        image_range: what 0 and 255 become.
        augmentation: "affine" moves each image a little, see `augment.affine_matrices`.
        first_row: number of the first row in the step's whole batch.
        all_rows: rows of the step's whole batch; the rows of `out` if None.
        in_order: row i of `images` is what row i of `out` is made of; somebody has chosen already.
        impl: "reference", "triton" or "auto", which takes the kernel for CUDA tensors.

    Raises:
        InputError: shapes, dtypes or devices do not fit, or `impl` cannot run here.
    """
    philox.require_seed(seed)
    if images.dtype != torch.uint8 or images.dim() != 4 or not images.is_contiguous():
        raise InputError(
            "images are uint8 (N, height, width, channels) and contiguous, not "
            f"{images.dtype} {tuple(images.shape)}"
        )
    if out.dim() != 4 or out.shape[1:] != images.shape[1:] or out.device != images.device:
        raise InputError(
            f"out takes rows of {tuple(images.shape[1:])} on {images.device}, it is "
            f"{tuple(out.shape)} on {out.device}"
        )
    if not out.is_contiguous() or not out.is_floating_point():
        raise InputError(f"out is contiguous and floating point, not {out.dtype}")
    if isinstance(step, Tensor) and (step.device != images.device or step.dtype != torch.int64):
        raise InputError(
            f"the step counter is int64 on {images.device}, not {step.dtype} on {step.device}"
        )
    if not 0 < len(images) <= shuffle.MAX_COUNT:
        raise InputError(f"a set has 1 to {shuffle.MAX_COUNT:,} images, not {len(images)}")
    rows = len(out)
    if in_order and len(images) < rows:
        raise InputError(f"{rows} rows in order are made of as many images, not of {len(images)}")
    chosen = choose(impl, images.device)
    if chosen == "native" and impl == "native":
        raise InputError("real images have no implementation in C++; use impl='auto'")
    counter = step if isinstance(step, Tensor) else None
    arguments = (
        images, out, counter, 0 if isinstance(step, Tensor) else step, seed & 0xFFFFFFFF,
        seed >> 32, float(image_range[0]), float(image_range[1]), augmentation == "affine",
        first_row, rows if all_rows is None else all_rows, in_order,
    )  # fmt: skip
    (_by_kernel if chosen == "triton" else _by_torch)(*arguments)


def _launch_kernel(
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
        shuffle.side_of(count),
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
        MAX_SHIFT=augment.MAX_SHIFT,
        MAX_ROTATION=augment.MAX_ROTATION,
        MAX_SHEAR=augment.MAX_SHEAR,
        MAX_LOG_SCALE=augment.MAX_LOG_SCALE,
        BLOCK=block,
        num_warps=4,
        read=(counter, images[: len(out)]),
        written=(out,),
    )


_SCHEMA = (
    "(Tensor images, Tensor(a!) out, Tensor? counter, int step, int seed_low, int seed_high, "
    "float low, float high, bool affine, int first_row, int all_rows, "
    "bool in_order) -> ()"
)
_by_kernel = register("real_images" + _SCHEMA, _launch_kernel)


def _compose(
    images: Tensor, out: Tensor, counter: Tensor | None, step: int, seed_low: int,
    seed_high: int, low: float, high: float, affine: bool, first_row: int, all_rows: int,
    in_order: bool,
) -> None:  # fmt: skip
    if is_recording():
        return
    seed, rows = seed_low | seed_high << 32, len(out)
    number = step if counter is None else int(counter.item())
    if in_order:
        chosen = images[:rows]
    else:
        drawn = shuffle.indices(seed, number * all_rows + first_row, rows, len(images))
        index = torch.from_numpy(drawn).to(images.device, non_blocking=True)
        chosen = images.index_select(0, index)
    wide = torch.promote_types(out.dtype, torch.float32)
    scaled = chosen.to(wide).div_(255.0)
    if affine:
        height, width = images.shape[1:3]
        found = augment.affine_matrices(seed, number, rows, height, width, first_row)
        matrices = torch.from_numpy(found).to(images.device, wide, non_blocking=True)
        scaled = augment.affine(scaled.permute(0, 3, 1, 2), matrices).permute(0, 2, 3, 1)
    out.copy_(scaled if (low, high) == (0.0, 1.0) else scaled.mul_(high - low).add_(low))


_by_torch = register("real_images_by_torch" + _SCHEMA, _compose)
