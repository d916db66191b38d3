"""The drawing kernel under the interpreter: bit for bit NumPy's numbers, whatever the launch."""

from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastinfogan_kernels.inputs.draw import draw_codes, empty_codes
from fastinfogan_kernels.latents import Categorical, Continuous, LatentSpec, Noise
from fastinfogan_kernels.philox import Stream

SPEC = LatentSpec(Noise(62), (Categorical(10), Categorical(3), Continuous(), Continuous()))

specs = st.builds(
    lambda noise, classes, continuous: LatentSpec(
        noise, tuple(Categorical(k) for k in classes) + (Continuous(),) * continuous
    ),
    st.builds(Noise, st.integers(1, 40), st.sampled_from(["uniform", "normal"])),
    st.lists(st.integers(2, 60), max_size=3),
    st.integers(0, 4),
)
words = st.integers(0, 2**32 - 1)


def as_stored(x: Tensor, dtype: torch.dtype) -> Tensor:
    """As the interpreter stores fp32: it truncates to bf16, where a GPU rounds (see test_draw)."""
    if dtype == torch.bfloat16:
        return (x.view(torch.int32) & -(1 << 16)).view(torch.float32).to(dtype)
    return x.to(dtype)


@settings(max_examples=40)
@given(
    specs, st.integers(0, 2**64 - 1), words, st.booleans(), st.integers(1, 9), words,
    st.integers(1, 2), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)  # fmt: skip
def test_triton_is_the_reference_bit_for_bit(
    spec: LatentSpec, seed: int, step: int, on_device: bool, rows: int, first_row: int,
    streams: int, dtype: torch.dtype,
) -> None:  # fmt: skip
    first_row = min(first_row, 2**32 - rows)
    where = {"first_row": first_row, "streams": streams}
    counter = torch.tensor(step) if on_device else step
    ours = draw_codes(spec, seed, counter, Stream.D_STEP, rows, dtype=dtype, impl="triton", **where)
    plain = draw_codes(spec, seed, step, Stream.D_STEP, rows, impl="reference", **where)
    assert torch.equal(ours.generator_input, as_stored(plain.generator_input, dtype))
    assert torch.equal(ours.classes, plain.classes)
    assert torch.equal(ours.continuous, plain.continuous)


@pytest.mark.parametrize("prior", ["uniform", "normal"])
def test_a_batch_of_many_blocks(prior: Literal["uniform", "normal"]) -> None:
    spec = LatentSpec(Noise(228, prior), SPEC.codes)
    ours, plain = (
        draw_codes(spec, 2**40 + 1, 5, Stream.G_STEP, 150, impl=impl)
        for impl in ("triton", "reference")
    )
    for name in vars(plain):
        assert torch.equal(getattr(ours, name), getattr(plain, name))


def test_nothing_but_the_buffers_is_written() -> None:
    """Rows and columns past the end belong to somebody else."""
    whole = empty_codes(SPEC, 7)
    for tensor in vars(whole).values():
        tensor.fill_(9)
    out = type(whole)(*(tensor[1:6] for tensor in vars(whole).values()))
    draw_codes(SPEC, 1, 0, Stream.D_STEP, 5, impl="triton", out=out)
    for tensor in vars(whole).values():
        assert (tensor[[0, 6]] == 9).all()
        assert not (tensor[1:6] == 9).all()


def test_compiled_the_draw_is_one_operation() -> None:
    def draw(counter: Tensor) -> Tensor:
        return draw_codes(SPEC, 1, counter, Stream.D_STEP, 4, impl="triton").generator_input

    counter = torch.tensor(3)
    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(counter), draw(counter))
    counter += 1
    assert torch.equal(compiled(counter), draw(counter))
