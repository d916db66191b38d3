"""Draw noise and codes: G's input and the codes that Q predicts.

    generator input   noise | one-hot of each categorical code | continuous codes
    codes             classes (int64), continuous (fp32)

A row takes one random word per noise number and per code. A table holds, for each column of G's
input, which word it is made of and how, so that any mix of codes is one launch. The definition is
`LatentSpec.draw`, in NumPy; C++ and Triton give the same bits.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fastinfogan_kernels import philox
from fastinfogan_kernels.errors import InputError
from fastinfogan_kernels.inputs.triton_random import below, normal, uniform, words
from fastinfogan_kernels.latents import NUMPY_FUNCTIONS, Latents, LatentSpec, RandomFunctions
from fastinfogan_kernels.runtime.lang import tl, triton
from fastinfogan_kernels.runtime.launch import (
    Implementation,
    choose,
    is_recording,
    launch,
    run_native,
)
from fastinfogan_kernels.runtime.machine import power_of_two
from fastinfogan_kernels.runtime.registry import register
from fastinfogan_kernels.runtime.workspace import empty_like

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""Dtypes of G's input."""


@dataclass(frozen=True)
class DrawnCodes:
    """One batch of noise and codes.

    Attributes:
        generator_input: G's input; (B, input_width).
        classes: categorical codes; int64 (B, categorical codes).
        continuous: continuous codes; float32 (B, continuous codes).
    """

    generator_input: Tensor
    classes: Tensor
    continuous: Tensor


def to_tensors(
    latents: Latents,
    spec: LatentSpec,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> DrawnCodes:
    """Copy rows of noise and codes, drawn or set by hand, to a device."""
    return DrawnCodes(
        torch.from_numpy(spec.generator_input(latents)).to(device, dtype, non_blocking=True),
        torch.from_numpy(latents.classes).to(device, non_blocking=True),
        torch.from_numpy(latents.continuous).to(device, non_blocking=True),
    )


def empty_codes(
    spec: LatentSpec,
    rows: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> DrawnCodes:
    """Allocate uninitialized buffers for `draw_codes`."""
    return DrawnCodes(
        torch.empty((rows, spec.input_width), dtype=dtype, device=device),
        torch.empty((rows, len(spec.categorical)), dtype=torch.int64, device=device),
        torch.empty((rows, len(spec.continuous)), dtype=torch.float32, device=device),
    )


def draw_codes(
    spec: LatentSpec,
    seed: int,
    step: int | Tensor,
    stream: philox.Stream,
    rows: int,
    *,
    first_row: int = 0,
    streams: int = 1,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    impl: Implementation = "auto",
    out: DrawnCodes | None = None,
) -> DrawnCodes:
    """Draw a batch from the prior.

    Args:
        spec: layout and prior.
        seed: the run's.
        step: the iteration's number, 0 <= step < 2^32; or an int64 tensor () on `device` that holds
            it. The Triton kernel reads its low 32 bits there, so that a captured launch draws new
            numbers whenever the counter has changed.
        stream: the purpose of the draw.
        rows: B.
        first_row: number of the first row in the global batch.
        streams: draw B rows for each of this many consecutive streams, the first being `stream`,
            in one launch; the tensors then have streams * B rows, stream after stream.
        device: of the tensors.
        dtype: of G's input: float32, bfloat16, float16 or float64; drawn in float32 always.
        impl: "reference", "native", "triton" or "auto".
        out: buffers to write to, see `empty_codes`.

    Returns:
        `out`, or new tensors.

    Raises:
        InputError: seed, step, rows or streams out of range; `impl` cannot run here; the step
            counter or `out` has the wrong device, dtype or shape.
    """
    device = torch.device(device)
    philox.require_seed(seed)
    # An int: torch.compile of 2.11 cannot compare an enum.
    _check_rows(rows, first_row, int(stream), streams)
    check_step(step, device)
    if dtype not in DTYPES:
        names = ", ".join(str(each).removeprefix("torch.") for each in DTYPES)
        raise InputError(f"dtype of G's input must be one of {names}, not {dtype}")
    backend = choose(impl, device)
    if out is None:
        out = empty_codes(spec, streams * rows, device, dtype)
    else:
        _check_buffers(out, spec, streams * rows, device, dtype)
    if rows == 0:
        return out
    if backend == "reference":
        _draw_reference(spec, seed, _number(step), stream, streams, first_row, out)
        return out
    # No kernel writes fp64, in which what is drawn in fp32 is exact.
    fp32_input = empty_like(out.generator_input, torch.float32) if dtype == torch.float64 else None
    counter, number = (step, 0) if isinstance(step, Tensor) else (None, step)
    key = (seed & 0xFFFFFFFF, seed >> 32, int(stream), streams, first_row)
    counts, is_normal = [code.classes for code in spec.categorical], spec.noise.prior == "normal"
    codes = (out.generator_input if fp32_input is None else fp32_input, out.classes, out.continuous)
    if backend == "native":
        _draw_native_op(*codes, counter, number, *key, spec.noise.size, counts, is_normal)
    else:
        table = column_table(spec.noise.size, tuple(counts), len(spec.continuous), device)
        _draw_op(*codes, table, counter, number, *key, is_normal)
    if fp32_input is not None:
        out.generator_input.copy_(fp32_input)
    return out


# --- reference -----------------------------------------------------------------------------------


def _draw_reference(
    spec: LatentSpec, seed: int, step: int, stream: int, streams: int, first_row: int,
    out: DrawnCodes,
) -> None:  # fmt: skip
    rows = out.classes.shape[0] // streams
    for i in range(streams):
        part = slice(i * rows, (i + 1) * rows)
        drawn = to_tensors(spec.draw(seed, step, stream + i, rows, first_row=first_row), spec)
        for name, tensor in vars(drawn).items():
            getattr(out, name)[part].copy_(tensor)


# --- C++ -----------------------------------------------------------------------------------------


def random_functions(impl: Implementation = "auto") -> RandomFunctions:
    """Return the random functions of NumPy ("reference") or C++ ("native")."""
    if choose(impl, "cpu") != "native":
        return NUMPY_FUNCTIONS
    from fastinfogan_kernels import _native

    def words(
        seed: int, step: int, stream: int, rows: int, columns: int, first_row: int = 0
    ) -> philox.Words:
        philox.require_seed(seed)
        return _native.words(seed, step, stream, rows, columns, first_row)

    return RandomFunctions(words, _native.uniform, _native.normal, _native.below)


@register("draw_codes_in_cpp", mutates_args=("generator_input", "classes", "continuous"))
def _draw_native_op(
    generator_input: Tensor, classes: Tensor, continuous: Tensor, counter: Tensor | None,
    step: int, seed_low: int, seed_high: int, stream: int, streams: int, first_row: int,
    noise_size: int, counts: list[int], is_normal: bool,
) -> None:  # fmt: skip
    if is_recording():
        return
    number, seed = step if counter is None else _number(counter), seed_low | seed_high << 32
    rows = classes.shape[0] // streams
    for i in range(streams):
        part = slice(i * rows, (i + 1) * rows)
        run_native(
            "draw_codes", seed, number, stream + i, first_row, noise_size, is_normal, counts,
            generator_input[part], classes[part], continuous[part],
        )  # fmt: skip


# --- Triton --------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["seed_low", "seed_high", "step", "stream", "first_row"])
def draw_codes_kernel(
    table_ptr,  # int32 (WIDTH, 4): word, classes, class, index; see `column_table`
    input_ptr,  # (streams * ROWS, WIDTH) out: G's input
    classes_ptr,  # int64 (streams * ROWS, CATEGORICAL) out
    continuous_ptr,  # fp32 (streams * ROWS, CONTINUOUS) out
    step,  # int64 () on the device, or a number
    seed_low, seed_high, stream, first_row,  # the bits of uint32 in int32
    ROWS, ALL_ROWS, WIDTH, CATEGORICAL, CONTINUOUS,
    STEP_ON_DEVICE: tl.constexpr, NORMAL: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Draw each value from its own counter. Grid: (blocks of rows, blocks of columns).

    A value depends on its row and column alone, not on the launch's shape. It uses one of the four
    words of its counter; at the size of a batch the launch costs more than that. ALL_ROWS: ROWS of
    `stream`, then as many of the next stream, and so on.
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


def column_table(
    noise_size: int, classes: tuple[int, ...], continuous: int, device: torch.device
) -> Tensor:
    """Return how each column of G's input is drawn; cached by layout and device.

    The first draw on a GPU copies the table to it, which no CUDA graph can capture: draw once
    before capturing.

    Args:
        noise_size: noise numbers of a row.
        classes: of each categorical code.
        continuous: number of continuous codes.
        device: of the table.

    Returns:
        int32 (input_width, 4), per column: its word in the row; the number of classes, or 0 if it
        is no one-hot column; its class; the index of its categorical or continuous code, or -1 for
        noise.
    """
    return _cached_table(noise_size, classes, continuous, device)


# What torch.compiler.assume_constant_result does, without importing torch._dynamo here.
column_table._dynamo_marked_constant = True  # type: ignore[attr-defined]


@lru_cache(maxsize=64)
def _cached_table(
    noise_size: int, classes: tuple[int, ...], continuous: int, device: torch.device
) -> Tensor:
    table = [(word, 0, 0, -1) for word in range(noise_size)]
    for i, count in enumerate(classes):
        table += [(noise_size + i, count, k, i) for k in range(count)]
    word = noise_size + len(classes)
    table += [(word + i, 0, 0, i) for i in range(continuous)]
    return torch.tensor(table, dtype=torch.int32).to(device)


@register("draw_codes", mutates_args=("generator_input", "classes", "continuous"))
def _draw_op(
    generator_input: Tensor, classes: Tensor, continuous: Tensor, table: Tensor,
    counter: Tensor | None, step: int, seed_low: int, seed_high: int, stream: int, streams: int,
    first_row: int, is_normal: bool,
) -> None:  # fmt: skip
    all_rows, width = generator_input.shape
    columns = power_of_two(width, 16, 128)
    block_rows = 512 // columns
    launch(
        draw_codes_kernel,
        (triton.cdiv(all_rows, block_rows), triton.cdiv(width, columns)),
        table,
        generator_input,
        classes,
        continuous,
        signed(step) if counter is None else counter,
        signed(seed_low),
        signed(seed_high),
        stream,
        signed(first_row),
        all_rows // streams,
        all_rows,
        width,
        classes.shape[1],
        continuous.shape[1],
        STEP_ON_DEVICE=counter is not None,
        NORMAL=is_normal,
        BLOCK_R=block_rows,
        BLOCK_C=columns,
        num_warps=4,
        enable_fp_fusion=False,
        read=(table, counter),
        written=(generator_input, classes, continuous),
    )


def signed(word: int) -> int:
    """Return the int32 with the bits of a uint32; Triton would pass a larger int as int64."""
    return word - 2**32 if word >= 2**31 else word


# --- checks --------------------------------------------------------------------------------------


def _number(step: int | Tensor) -> int:
    """Return a step's number; synchronises if it is on a device."""
    if isinstance(step, Tensor):
        step = int(step.item())
        check_step(step, torch.device("cpu"))
    return step


def _check_rows(rows: int, first_row: int, stream: int, streams: int) -> None:
    if rows < 0 or first_row < 0 or first_row + rows > 2**32:
        raise InputError(
            f"rows {first_row} to {first_row + rows} cannot be drawn: first_row and rows must be "
            ">= 0, and their sum at most 2^32"
        )
    if streams < 1 or not 0 <= stream <= 2**31 - streams:
        raise InputError(
            f"streams must be >= 1 and stream >= 0, not streams={streams}, stream={stream}"
        )


def check_step(step: int | Tensor, device: torch.device) -> None:
    """Check an iteration's number, or the counter on the device that holds it.

    Raises:
        InputError: the number is out of range, the counter of another dtype, shape or device.
    """
    if isinstance(step, Tensor):
        if step.dtype != torch.int64 or step.dim() != 0:
            raise InputError(
                "a step counter must be an int64 tensor of no dimension, not "
                f"{step.dtype} of shape {tuple(step.shape)}"
            )
        if not _same_device(step.device, device):
            raise InputError(
                f"the step counter is on {step.device}, the batch on {device}; move it there, or "
                "give the step as an int"
            )
    elif not 0 <= step < 2**32:
        raise InputError(f"step must be in [0, 2^32), not {step}")


def _check_buffers(
    out: DrawnCodes, spec: LatentSpec, rows: int, device: torch.device, dtype: torch.dtype
) -> None:
    for name, tensor, width, kind in (
        ("generator_input", out.generator_input, spec.input_width, dtype),
        ("classes", out.classes, len(spec.categorical), torch.int64),
        ("continuous", out.continuous, len(spec.continuous), torch.float32),
    ):
        if (
            tuple(tensor.shape) != (rows, width)
            or tensor.dtype != kind
            or not _same_device(tensor.device, device)
            or not tensor.is_contiguous()
        ):
            raise InputError(
                f"out.{name} must be contiguous {kind} of shape ({rows}, {width}) on {device}, not "
                f"{tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}; see empty_codes"
            )


def _same_device(actual: torch.device, expected: torch.device) -> bool:
    if expected.type == "cuda" and expected.index is None:
        expected = torch.device("cuda", torch.cuda.current_device())
    return actual == expected
