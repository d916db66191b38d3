"""Codes drawn into G's input: one set of numbers whatever draws them, and their distribution."""

from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fastinfogan.errors import InputError
from fastinfogan_kernels.inputs.draw import DrawnCodes, draw_codes, empty_codes
from fastinfogan_kernels.latents import Categorical, Continuous, LatentSpec, Noise
from fastinfogan_kernels.philox import Stream
from fastinfogan_kernels.runtime.launch import Implementation, Launch, recording
from tests.helpers import ahead
from tests.helpers.specs import any_spec

MANY = 1_000_000
SPEC = LatentSpec(Noise(5), (Categorical(10), Categorical(3), Continuous(), Continuous("fixed")))
seeds = st.integers(0, 2**64 - 1)
words = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])


def same(a: DrawnCodes, b: DrawnCodes) -> bool:
    pairs = zip(vars(a).values(), vars(b).values(), strict=True)
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs)


@given(any_spec(), seeds, words, st.sampled_from(Stream), st.integers(0, 9), words, dtypes)
def test_native_is_the_reference_bit_for_bit(
    native: Implementation, spec: LatentSpec, seed: int, step: int, stream: Stream, rows: int,
    first_row: int, dtype: torch.dtype,
) -> None:  # fmt: skip
    first_row = min(first_row, 2**32 - rows)
    actual, expected = (
        draw_codes(spec, seed, step, stream, rows, first_row=first_row, dtype=dtype, impl=impl)
        for impl in (native, "reference")
    )
    assert same(actual, expected)


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_counter_and_static_buffers(
    impl: Literal["auto", "reference"], dtype: torch.dtype
) -> None:
    out = empty_codes(SPEC, 6, dtype=dtype)
    counter = torch.zeros((), dtype=torch.int64)
    seen = []
    for step in range(3):
        drawn = draw_codes(
            SPEC, 7, counter, Stream.D_STEP, 3, streams=2, out=out, dtype=dtype, impl=impl
        )
        assert drawn is out
        for i, stream in enumerate((Stream.D_STEP, Stream.G_STEP)):
            alone = draw_codes(SPEC, 7, step, stream, 3, dtype=dtype)
            part = slice(3 * i, 3 * i + 3)
            of_stream = DrawnCodes(*(t[part] for t in vars(out).values()))
            assert same(of_stream, alone)
        seen.append(out.generator_input.clone())
        counter += 1
    assert not torch.equal(seen[0], seen[1])


def test_no_rows() -> None:
    assert draw_codes(SPEC, 1, 0, Stream.D_STEP, 0).generator_input.shape == (0, 20)


def test_codes_stay_exact_where_g_takes_bf16() -> None:
    drawn = draw_codes(SPEC, 1, 0, Stream.D_STEP, 64, dtype=torch.bfloat16)
    exact = draw_codes(SPEC, 1, 0, Stream.D_STEP, 64)
    assert torch.equal(drawn.continuous, exact.continuous)
    assert torch.equal(drawn.generator_input, exact.generator_input.bfloat16())


def buffers(**changed: Any) -> DrawnCodes:  # noqa: ANN401
    return DrawnCodes(**(vars(empty_codes(SPEC, 4)) | changed))


@pytest.mark.parametrize(
    ("step", "options", "message"),
    [
        (-1, {}, r"step must be in \[0, 2\^32\), not -1"),
        (2**32, {}, r"step must be in \[0, 2\^32\)"),
        (torch.tensor(-1), {}, r"step must be in \[0, 2\^32\), not -1"),
        (torch.tensor(1.0), {}, "a step counter must be an int64 tensor of no dimension"),
        (torch.tensor([1]), {}, "no dimension, not torch.int64 of shape \\(1,\\)"),
        (torch.zeros((), dtype=torch.int64, device="meta"), {}, "counter is on meta, the batch"),
        (0, {"dtype": torch.int32}, "must be one of float32, bfloat16, float16, float64"),
        (0, {"first_row": -1}, "rows -1 to 3 cannot be drawn"),
        (0, {"first_row": 2**32 - 3}, "cannot be drawn"),
        (0, {"streams": 0}, "streams must be >= 1"),
        (0, {"impl": "triton"}, "impl='triton' needs CUDA tensors"),
        (0, {"out": buffers(classes=torch.empty(4, 2))}, "out.classes must be contiguous torch.in"),
        (0, {"out": buffers(), "dtype": torch.bfloat16}, "out.generator_input must be contiguous"),
        (0, {"out": empty_codes(SPEC, 5)}, "of shape \\(4, 20\\) on cpu, not"),
        (0, {"out": buffers(continuous=torch.empty(2, 4).T)}, "out.continuous must be contiguous"),
        (0, {"out": empty_codes(SPEC, 4, "meta")}, "on cpu, not torch.float32 .* on meta"),
    ],
)  # fmt: skip
def test_invalid_arguments(step: Any, options: dict[str, Any], message: str) -> None:  # noqa: ANN401
    with pytest.raises(InputError, match=message):
        draw_codes(SPEC, 0, step, Stream.D_STEP, 4, **options)


def p_values_of_classes(classes: torch.Tensor, spec: LatentSpec) -> list[float]:
    return [
        stats.chisquare(np.bincount(classes[:, i].numpy(), minlength=code.classes)).pvalue
        for i, code in enumerate(spec.categorical)
    ]


@pytest.mark.parametrize("prior", ["uniform", "normal"])
def test_a_million_draws_follow_the_prior(prior: Literal["uniform", "normal"]) -> None:
    """The draws are fixed by the seed, so a p-value is one number, not a chance of failing."""
    spec = LatentSpec(Noise(2, prior), (Categorical(10), Categorical(1000), Continuous()))
    drawn = draw_codes(spec, 11, 0, Stream.EVALUATION, MANY)
    assert min(p_values_of_classes(drawn.classes, spec)) > 0.01
    flat = stats.uniform(-1, 2)
    assert stats.kstest(drawn.continuous[:, 0].numpy(), flat.cdf).pvalue > 0.01
    noise = drawn.generator_input[:, :2].numpy()
    law = stats.norm() if prior == "normal" else flat
    for column in noise.T:
        assert stats.kstest(column, law.cdf).pvalue > 0.01


def test_streams_steps_rows_and_columns_are_uncorrelated() -> None:
    """Of a million pairs the correlation deviates by 1/1000: five deviations are refused."""
    spec = LatentSpec(Noise(5), (Continuous(),))

    def numbers(step: int = 0, stream: Stream = Stream.D_STEP, seed: int = 3) -> torch.Tensor:
        return draw_codes(spec, seed, step, stream, MANY).generator_input.double()

    base = numbers()
    others = {
        "stream": numbers(stream=Stream.G_STEP),
        "step": numbers(step=1),
        "seed": numbers(seed=4),
        "high word of the seed": numbers(seed=3 + 2**32),
        "next row": base.roll(1, 0),
        "next column": base.roll(1, 1),
    }
    for name, other in others.items():
        correlation = (base * other).mean(0) * 3  # the variance of U(-1, 1) is 1/3
        assert correlation.abs().max() < 5e-3, name


def record_draws() -> list[Launch]:
    """Record what `ahead` compiles: both priors, both kinds of step."""
    counter = torch.zeros((), dtype=torch.int64, device="meta")
    with recording() as launches:
        for prior, dtype, step in (("normal", torch.bfloat16, counter), ("uniform", torch.half, 3)):
            spec = LatentSpec(Noise(62, prior), SPEC.codes)  # type: ignore[arg-type]
            draw_codes(spec, 2**63, step, Stream.D_STEP, 128, device="meta", dtype=dtype)
    return launches


def test_one_launch_that_reads_and_writes_each_value_once() -> None:
    launches = record_draws()
    assert [launch.name for launch in launches] == ["draw_codes_kernel"] * 2
    width, rows = 62 + 13 + 2, 128
    assert launches[0].written == rows * (width * 2 + 2 * 8 + 2 * 4)
    assert launches[0].read == width * 16 + 8


@pytest.mark.parametrize("target", ahead.TARGETS)
def test_nothing_is_contracted(target: str) -> None:
    """Every sum and product is rounded on its own, and so is the square root."""
    drawn = ahead.compiled(target, "test_draw", "record_draws")
    assert len(drawn) == 2
    for each in drawn:
        assert each["stack"] == each["f64"] == each["fma"] == each["ftz"] == each["sloppy"] == 0
    if target != "gfx942":
        assert drawn[0]["sqrt"] > 0
        assert drawn[0]["bf16"] > 0
