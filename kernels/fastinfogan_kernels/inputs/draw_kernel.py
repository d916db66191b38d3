"""Noise and code, drawn where they are used.

    G's input   noise | one-hot of each categorical | continuous codes
    code        classes (int64), continuous (fp32)

A row takes one random word per noise number and per code. Which word a column of G's input is made
of, and how, stands in a table with one entry per column, so that any mix of codes is one pass: a
value's number depends on its row and column alone, not on the launch's shape. Each value encrypts
its own counter and keeps one of the four words; at the sizes of a batch the launch costs more.
"""

from fastinfogan_kernels.inputs.philox_kernels import below, normal, uniform, words
from fastinfogan_kernels.runtime.lang import tl, triton


@triton.jit(do_not_specialize=["seed_low", "seed_high", "step", "stream", "first_row"])
def draw_codes_kernel(
    table_ptr,  # int32 (WIDTH, 4): word, classes, class, index; see `draw.column_table`
    input_ptr,  # (streams * ROWS, WIDTH) out: G's input
    classes_ptr,  # int64 (streams * ROWS, CATEGORICAL) out
    continuous_ptr,  # fp32 (streams * ROWS, CONTINUOUS) out
    step,  # int64 () on the device, or a number
    seed_low, seed_high, stream, first_row,  # int32, their bits are meant
    ROWS, ALL_ROWS, WIDTH, CATEGORICAL, CONTINUOUS,
    STEP_ON_DEVICE: tl.constexpr, NORMAL: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """See the module. Grid: (blocks of rows, blocks of columns).

    ALL_ROWS: ROWS of `stream`, then as many of the stream after it, and so on.
    """
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    r_ok, c_ok = r < ALL_ROWS, c < WIDTH
    ok = r_ok[:, None] & c_ok[None, :]
    entry = table_ptr + c * 4
    word = tl.load(entry, mask=c_ok, other=0).to(tl.uint32)
    classes = tl.load(entry + 1, mask=c_ok, other=0).to(tl.uint32)[None, :]
    own_class = tl.load(entry + 2, mask=c_ok, other=0).to(tl.uint32)[None, :]
    index = tl.load(entry + 3, mask=c_ok, other=-1)[None, :]

    if STEP_ON_DEVICE:
        step = tl.load(step)
    drawn = words(
        word[None, :], (first_row + r % ROWS).to(tl.uint32)[:, None], step.to(tl.uint32),
        (stream + r // ROWS).to(tl.uint32)[:, None], seed_low.to(tl.uint32),
        seed_high.to(tl.uint32),
    )  # fmt: skip
    drawn_class = below(drawn, classes)
    flat = uniform(drawn)
    value = flat
    if NORMAL:
        value = tl.where(index < 0, normal(drawn), flat)
    value = tl.where(classes > 0, (drawn_class == own_class).to(tl.float32), value)

    row = r.to(tl.int64)[:, None]
    tl.store(input_ptr + row * WIDTH + c[None, :], value.to(input_ptr.dtype.element_ty), mask=ok)
    if CATEGORICAL > 0:
        first = ok & (classes > 0) & (own_class == 0)
        tl.store(classes_ptr + row * CATEGORICAL + index, drawn_class.to(tl.int64), mask=first)
    if CONTINUOUS > 0:
        code = ok & (classes == 0) & (index >= 0)
        tl.store(continuous_ptr + row * CONTINUOUS + index, flat, mask=code)
