"""The drawing kernel: bit for bit NumPy's numbers, whatever the launch."""

from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastinfogan_kernels.inputs.draw import draw_codes, empty_codes
from fastinfogan_kernels.latents import Categorical, Continuous, LatentSpec, Noise
from fastinfogan_kernels.philox import Stream
from tests.helpers.specs import any_spec

SPEC = LatentSpec(Noise(62), (Categorical(10), Categorical(3), Continuous(), Continuous()))

words = st.integers(0, 2**32 - 1)


def stored(x: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Convert fp32 as a kernel stores it: the interpreter truncates to bf16, a GPU rounds."""
    if dtype == torch.bfloat16 and device.type == "cpu":
        return (x.view(torch.int32) & -(1 << 16)).view(torch.float32).to(dtype)
    return x.to(dtype)


@settings(max_examples=40)
@given(
    any_spec(40, 60, 3, 4), st.integers(0, 2**64 - 1), words, st.booleans(), st.integers(1, 9),
    words, st.integers(1, 2), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)  # fmt: skip
def test_triton_is_the_reference_bit_for_bit(
    device: torch.device, spec: LatentSpec, seed: int, step: int, on_device: bool, rows: int,
    first_row: int, streams: int, dtype: torch.dtype,
) -> None:  # fmt: skip
    first_row = min(first_row, 2**32 - rows)
    where = {"first_row": first_row, "streams": streams}
    counter = torch.tensor(step, device=device) if on_device else step
    actual = draw_codes(
        spec, seed, counter, Stream.D_STEP, rows, dtype=dtype, device=device, impl="triton", **where
    )
    expected = draw_codes(spec, seed, step, Stream.D_STEP, rows, impl="reference", **where)
    inputs = stored(expected.generator_input, dtype, device)
    assert torch.equal(actual.generator_input.cpu(), inputs)
    assert torch.equal(actual.classes.cpu(), expected.classes)
    assert torch.equal(actual.continuous.cpu(), expected.continuous)


@pytest.mark.parametrize("prior", ["uniform", "normal"])
def test_a_batch_of_many_blocks(prior: Literal["uniform", "normal"], device: torch.device) -> None:
    spec = LatentSpec(Noise(228, prior), SPEC.codes)
    actual, expected = (
        draw_codes(spec, 2**40 + 1, 5, Stream.G_STEP, 150, device=device, impl=impl)
        for impl in ("triton", "reference")
    )
    for name in vars(expected):
        assert torch.equal(getattr(actual, name), getattr(expected, name))


def test_memory_beside_the_buffers_is_not_written(device: torch.device) -> None:
    whole = empty_codes(SPEC, 7, device)
    for tensor in vars(whole).values():
        tensor.fill_(9)
    out = type(whole)(*(tensor[1:6] for tensor in vars(whole).values()))
    draw_codes(SPEC, 1, 0, Stream.D_STEP, 5, device=device, impl="triton", out=out)
    for tensor in vars(whole).values():
        assert (tensor[[0, 6]] == 9).all()
        assert not (tensor[1:6] == 9).all()


def test_compiled_the_draw_is_one_operation(device: torch.device) -> None:
    def draw(counter: Tensor) -> Tensor:
        found = draw_codes(SPEC, 1, counter, Stream.D_STEP, 4, device=device, impl="triton")
        return found.generator_input

    counter = torch.tensor(3, device=device)
    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(counter), draw(counter))
    counter += 1
    assert torch.equal(compiled(counter), draw(counter))
