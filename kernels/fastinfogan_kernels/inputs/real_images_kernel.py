"""A batch of real images from a resident set: chosen, moved and scaled in one launch.

An image's number is computed from (seed, step, row), see `device.shuffle`, or is that of the row;
so is the affine map by which it is moved, see kernels/augment.py. Pixels are read as uint8 and
written as the networks' input, low + (high - low) * pixel / 255.
"""

from fastinfogan_kernels.inputs.philox_kernels import encrypt, uniform
from fastinfogan_kernels.inputs.shuffle_kernels import image_at
from fastinfogan_kernels.runtime.lang import tl, triton


@triton.jit
def small_cos_sin(angle):
    """Both to 1e-8 for at most 10 degrees.

    CUDA's own reduce angles of any size, by a table on the stack and in double precision.
    """
    square = angle * angle
    cos = 1.0 - square * (0.5 - square * (1.0 / 24 - square * (1.0 / 720)))
    return cos, angle * (1.0 - square * (1.0 / 6 - square * (1.0 / 120 - square * (1.0 / 5040))))


@triton.jit(do_not_specialize=["step", "seed_low", "seed_high"])
def real_images_kernel(
    images_ptr,  # uint8 (COUNT, HEIGHT, WIDTH, CHANNELS); the batch's rows if IN_ORDER
    out_ptr,  # (rows, HEIGHT, WIDTH, CHANNELS) out
    step,  # int64 () on the device, or a number
    seed_low, seed_high,  # int32, their bits are meant
    COUNT, SIDE, FIRST_ROW, ALL_ROWS, HEIGHT, WIDTH,
    ORDER: tl.constexpr, AUGMENT: tl.constexpr,  # streams
    STEP_ON_DEVICE: tl.constexpr, IN_ORDER: tl.constexpr, AFFINE: tl.constexpr,
    CHANNELS: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, MAX_SHIFT: tl.constexpr,
    MAX_ROTATION: tl.constexpr, MAX_SHEAR: tl.constexpr, MAX_LOG_SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """See the module. Grid: (rows, blocks of an image's values).

    The batch is rows FIRST_ROW, FIRST_ROW + 1, ... of a step's ALL_ROWS.
    """
    row = FIRST_ROW + tl.program_id(0)
    if STEP_ON_DEVICE:
        step = tl.load(step)
    low, high = seed_low.to(tl.uint32), seed_high.to(tl.uint32)
    if IN_ORDER:
        image = tl.program_id(0).to(tl.int64)
    else:
        # A number's int32 has the bits of an unsigned one.
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
        right_share, lower_share = from_x - left, from_y - top
        column, line = left.to(tl.int32), top.to(tl.int32)
        value = tl.zeros((BLOCK,), tl.float32)
        for corner in tl.static_range(4):
            u, v = column + corner % 2, line + corner // 2
            share_x = right_share if corner % 2 == 1 else 1.0 - right_share
            share_y = lower_share if corner // 2 == 1 else 1.0 - lower_share
            inside = ok & (u >= 0) & (u < WIDTH) & (v >= 0) & (v < HEIGHT)
            found = tl.load(base + (v * WIDTH + u) * CHANNELS + channel, mask=inside, other=0)
            value += found.to(tl.float32) * (share_x * share_y)
    else:
        value = tl.load(base + at, mask=ok, other=0).to(tl.float32)
    scaled = value * ((HIGH - LOW) / 255.0) + LOW
    to = out_ptr + tl.program_id(0).to(tl.int64) * size + at
    tl.store(to, scaled.to(out_ptr.dtype.element_ty), mask=ok)
