"""Drawing noise and code: G's input and the targets of Q, as tensors.

reference: NumPy, fastinfogan.philox. native: its C++ twin, bit for bit the same, and faster.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastinfogan import philox
from fastinfogan.kernels.backend import Implementation, choose
from fastinfogan.latents import NUMPY_DRAW, Draw, Latents, LatentSpec


@dataclass(frozen=True)
class DrawnCodes:
    """One batch of noise and code.

    Attributes:
        generator_input: (B, input_width), the dtype asked for.
        classes: int64 (B, categorical codes).
        continuous: (B, continuous codes), the dtype asked for.
    """

    generator_input: Tensor
    classes: Tensor
    continuous: Tensor


def _native_draw() -> Draw:
    from fastinfogan import _native

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
        torch.from_numpy(latents.continuous).to(device, dtype, non_blocking=True),
    )


def draw_codes(
    spec: LatentSpec,
    seed: int,
    step: int,
    stream: philox.Stream,
    rows: int,
    *,
    first_row: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    impl: Implementation = "auto",
) -> DrawnCodes:
    """Draw a batch from the prior.

    Args:
        spec: layout and prior.
        seed: the run's.
        step: the iteration's number.
        stream: what the draw is for.
        rows: B.
        first_row: number of the first row in the global batch.
        device: where the tensors are wanted.
        dtype: of the floating-point tensors; drawn in float32 whatever it is.
        impl: "reference", "native" or "auto".

    Raises:
        InputError: "native" was asked for and is not compiled, or the seed is out of range.
    """
    latents = spec.draw(seed, step, stream, rows, first_row=first_row, by=by(impl))
    return to_tensors(latents, spec, device, dtype)
