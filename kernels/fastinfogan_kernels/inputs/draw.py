"""Drawing noise and code: G's input and the targets of Q, as tensors.

reference: NumPy, fastinfogan_kernels.philox. native and triton: bit for bit the same, in one pass
that writes straight into G's input and the code; native for CPU tensors, triton for CUDA tensors.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fastinfogan_kernels import philox
from fastinfogan_kernels.errors import InputError
from fastinfogan_kernels.inputs.draw_kernel import draw_codes_kernel
from fastinfogan_kernels.latents import NUMPY_DRAW, Draw, Latents, LatentSpec
from fastinfogan_kernels.runtime.backend import Implementation, choose
from fastinfogan_kernels.runtime.lang import triton
from fastinfogan_kernels.runtime.launch import is_recording, launch, run_native
from fastinfogan_kernels.runtime.machine import power_of_two
from fastinfogan_kernels.runtime.registry import register
from fastinfogan_kernels.runtime.workspace import empty_like

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""What G's input may be."""


@dataclass(frozen=True)
class DrawnCodes:
    """One batch of noise and code.

    Attributes:
        generator_input: (B, input_width), the dtype asked for.
        classes: int64 (B, categorical codes).
        continuous: float32 (B, continuous codes), as drawn.
    """

    generator_input: Tensor
    classes: Tensor
    continuous: Tensor


def _native_draw() -> Draw:
    from fastinfogan_kernels import _native

    def words(
        seed: int, step: int, stream: int, rows: int, columns: int, first_row: int = 0
    ) -> philox.Words:
        philox.require_seed(seed)
        return _native.words(seed, step, stream, rows, columns, first_row)

    return Draw(words, _native.uniform, _native.normal, _native.below)


def by(impl: Implementation = "auto") -> Draw:
    """The drawing functions of an implementation."""
    return _native_draw() if choose(impl, "cpu") == "native" else NUMPY_DRAW


def to_tensors(
    latents: Latents,
    spec: LatentSpec,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> DrawnCodes:
    """Lay out rows of noise and code, drawn or set by hand, on a device."""
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
    """Buffers for `draw_codes` to write into, uninitialised."""
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
        step: the iteration's number, 0 <= step < 2^32; or an int64 tensor of no dimension on
            `device`, which holds it. The Triton kernel reads it there and takes its low 32 bits,
            so a captured launch draws anew whenever the counter was moved.
        stream: what the draw is for.
        rows: B.
        first_row: number of the first row in the global batch.
        streams: draw B rows for each of so many streams, the first being `stream`, in one launch;
            the tensors then have streams * B rows, one stream's after the other's.
        device: where the tensors are wanted.
        dtype: of G's input: float32, bfloat16, float16 or float64; drawn in float32 whatever it is.
        impl: "reference", "native", "triton" or "auto".
        out: static buffers to write into, as `empty_codes` makes them.

    Returns:
        `out`, or new tensors.

    Raises:
        InputError: seed, step, rows or streams out of range; `impl` cannot run here; the step
            counter or `out` has the wrong device, dtype or shape.
    """
    device = torch.device(device)
    philox.require_seed(seed)
    # An int: torch.compile of 2.11 cannot compare an enum.
    _require_counts(rows, first_row, int(stream), streams)
    _require_step(step, device)
    if dtype not in DTYPES:
        raise InputError(f"G's input is {_names(DTYPES)}, not {dtype}")
    chosen = choose(impl, device)
    if out is None:
        out = empty_codes(spec, streams * rows, device, dtype)
    else:
        _require_buffers(out, spec, streams * rows, device, dtype)
    if rows == 0:
        return out
    if chosen == "reference":
        _draw_reference(spec, seed, _number(step), stream, streams, first_row, out)
        return out
    # Neither kernel writes double precision; what was drawn in fp32 is exact in it.
    wide = dtype == torch.float64
    narrow = empty_like(out.generator_input, torch.float32) if wide else None
    target = out.generator_input if narrow is None else narrow
    counter, number = (step, 0) if isinstance(step, Tensor) else (None, step)
    where = (seed & 0xFFFFFFFF, seed >> 32, int(stream), streams, first_row)
    counts, normal = [code.classes for code in spec.categorical], spec.noise.prior == "normal"
    codes = (target, out.classes, out.continuous)
    if chosen == "native":
        _draw_natively(*codes, counter, number, *where, spec.noise.size, counts, normal)
    else:
        table = column_table(spec.noise.size, tuple(counts), len(spec.continuous), device)
        _draw(*codes, table, counter, number, *where, normal)
    if narrow is not None:
        out.generator_input.copy_(narrow)
    return out


def column_table(
    noise_size: int, classes: tuple[int, ...], continuous: int, device: torch.device
) -> Tensor:
    """What each column of G's input is made of, for the kernel: made once per layout and device.

    The first draw on a GPU copies it there, which no CUDA graph can record: draw once before
    capturing.

    Args:
        noise_size: noise numbers of a row.
        classes: of each categorical code.
        continuous: how many continuous codes.
        device: of the table.

    Returns:
        int32 (input_width, 4), per column: which word of its row; the classes, or 0 if it is no
        one-hot column; the class that it stands for; which categorical or continuous code, or -1
        for noise.
    """
    return _made_table(noise_size, classes, continuous, device)


# What torch.compiler.assume_constant_result does, without importing torch._dynamo here.
column_table._dynamo_marked_constant = True  # type: ignore[attr-defined]


@lru_cache(maxsize=64)
def _made_table(
    noise_size: int, classes: tuple[int, ...], continuous: int, device: torch.device
) -> Tensor:
    table = [(word, 0, 0, -1) for word in range(noise_size)]
    for i, count in enumerate(classes):
        table += [(noise_size + i, count, k, i) for k in range(count)]
    word = noise_size + len(classes)
    table += [(word + i, 0, 0, i) for i in range(continuous)]
    return torch.tensor(table, dtype=torch.int32).to(device)


def _draw_kernel(
    generator_input: Tensor, classes: Tensor, continuous: Tensor, table: Tensor,
    counter: Tensor | None, step: int, seed_low: int, seed_high: int, stream: int, streams: int,
    first_row: int, normal: bool,
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
        NORMAL=normal,
        BLOCK_R=block_rows,
        BLOCK_C=columns,
        num_warps=4,
        enable_fp_fusion=False,
        read=(table, counter),
        written=(generator_input, classes, continuous),
    )


_draw = register(
    "draw_codes(Tensor(a!) generator_input, Tensor(b!) classes, Tensor(c!) continuous, "
    "Tensor table, Tensor? counter, int step, int seed_low, int seed_high, int stream, "
    "int streams, int first_row, bool normal) -> ()",
    _draw_kernel,
)


def _draw_in_cpp(
    generator_input: Tensor, classes: Tensor, continuous: Tensor, counter: Tensor | None,
    step: int, seed_low: int, seed_high: int, stream: int, streams: int, first_row: int,
    noise_size: int, counts: list[int], normal: bool,
) -> None:  # fmt: skip
    if is_recording():
        return
    number, seed = step if counter is None else _number(counter), seed_low | seed_high << 32
    rows = classes.shape[0] // streams
    for i in range(streams):
        part = slice(i * rows, (i + 1) * rows)
        run_native(
            "draw_codes", seed, number, stream + i, first_row, noise_size, normal, counts,
            generator_input[part], classes[part], continuous[part],
        )  # fmt: skip


_draw_natively = register(
    "draw_codes_in_cpp(Tensor(a!) generator_input, Tensor(b!) classes, Tensor(c!) continuous, "
    "Tensor? counter, int step, int seed_low, int seed_high, int stream, int streams, "
    "int first_row, int noise_size, int[] counts, bool normal) -> ()",
    _draw_in_cpp,
)


def _draw_reference(
    spec: LatentSpec,
    seed: int,
    step: int,
    stream: int,
    streams: int,
    first_row: int,
    out: DrawnCodes,
) -> None:
    rows = out.classes.shape[0] // streams
    for i in range(streams):
        part = slice(i * rows, (i + 1) * rows)
        drawn = to_tensors(spec.draw(seed, step, stream + i, rows, first_row=first_row), spec)
        out.generator_input[part].copy_(drawn.generator_input)
        out.classes[part].copy_(drawn.classes)
        out.continuous[part].copy_(drawn.continuous)


def signed(word: int) -> int:
    """The int32 with the bits of a 32-bit number, which Triton passes without widening."""
    return word - 2**32 if word >= 2**31 else word


def _number(step: int | Tensor) -> int:
    """A step's number; one that lies on the device is waited for."""
    if isinstance(step, Tensor):
        step = int(step.item())
        _require_step(step, torch.device("cpu"))
    return step


def _require_counts(rows: int, first_row: int, stream: int, streams: int) -> None:
    if rows < 0 or first_row < 0 or first_row + rows > 2**32:
        raise InputError(
            f"rows {first_row} to {first_row + rows} cannot be drawn; a row's number is 0 or more "
            "and below 2^32"
        )
    if streams < 1 or not 0 <= stream <= 2**31 - streams:
        raise InputError(f"draw for 1 stream or more, the first 0 or more, not {streams}, {stream}")


def _require_step(step: int | Tensor, device: torch.device) -> None:
    if isinstance(step, Tensor):
        if step.dtype != torch.int64 or step.dim() != 0:
            raise InputError(
                "a step counter is an int64 tensor of no dimension, not "
                f"{step.dtype} of shape {tuple(step.shape)}"
            )
        if not _same_device(step.device, device):
            raise InputError(
                f"the step counter is on {step.device} and the codes are wanted on {device}; "
                "make it there, or give the step as an int"
            )
    elif not 0 <= step < 2**32:
        raise InputError(f"step must be 0 or more and below 2^32, not {step}")


def _require_buffers(
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
                f"{tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}; make it by "
                "empty_codes"
            )


def _same_device(found: torch.device, wanted: torch.device) -> bool:
    """Whether a tensor is where it is wanted; "cuda" is the current GPU."""
    if wanted.type == "cuda" and wanted.index is None:
        wanted = torch.device("cuda", torch.cuda.current_device())
    return found == wanted


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
