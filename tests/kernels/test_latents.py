"""Codes and noise: layout, prior, and what is refused."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastinfogan.errors import InputError
from fastinfogan_kernels.inputs.draw import draw_codes
from fastinfogan_kernels.latents import Categorical, Continuous, LatentSpec, Noise
from fastinfogan_kernels.philox import Stream
from fastinfogan_kernels.runtime.launch import Implementation
from tests.helpers.specs import any_spec

specs = any_spec(9, 30, 4, 4)


@given(specs)
def test_the_slices_tile_input_and_output(spec: LatentSpec) -> None:
    everything = [slice(0, spec.noise.size), *spec.one_hot_slices, spec.continuous_slice]
    covered = np.concatenate([np.arange(s.start, s.stop) for s in everything])
    assert np.array_equal(covered, np.arange(spec.input_width))
    everything = [*spec.logit_slices, spec.mean_slice, spec.deviation_slice]
    covered = np.concatenate([np.arange(s.start, s.stop) for s in everything])
    assert np.array_equal(covered, np.arange(spec.output_width))
    assert len(spec.names) == len(spec.entropies) == len(spec.codes)


@given(specs, st.integers(0, 2**32), st.integers(0, 1000))
def test_a_draw_is_laid_out_as_the_slices_say(spec: LatentSpec, seed: int, step: int) -> None:
    latents = spec.draw(seed, step, Stream.D_STEP, 6)
    rows = spec.generator_input(latents)
    assert rows.shape == (6, spec.input_width)
    assert rows.dtype == np.float32
    assert np.array_equal(rows[:, : spec.noise.size], latents.noise)
    for i, place in enumerate(spec.one_hot_slices):
        assert np.array_equal(rows[:, place].argmax(axis=1), latents.classes[:, i])
        assert np.array_equal(rows[:, place].sum(axis=1), np.ones(6))
    assert np.array_equal(rows[:, spec.continuous_slice], latents.continuous)
    assert np.abs(latents.continuous).max(initial=0) < 1


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_invalid_seeds(seed: int, impl: Implementation) -> None:
    spec = LatentSpec(Noise(5), ())
    with pytest.raises(InputError, match=f"`seed` must be 0 or more and below 2\\^64, not {seed}"):
        draw_codes(spec, seed, 0, Stream.PICTURES, 2, impl=impl)
    assert len(draw_codes(spec, 2**64 - 1, 0, Stream.PICTURES, 2, impl=impl).classes) == 2


def test_a_rank_draws_its_rows_of_the_global_batch() -> None:
    spec = LatentSpec(Noise(3), (Categorical(4), Continuous()))
    whole = draw_codes(spec, 1, 2, Stream.G_STEP, 8).generator_input
    part = draw_codes(spec, 1, 2, Stream.G_STEP, 3, first_row=5).generator_input
    assert torch.equal(whole[5:], part)


def test_entropies() -> None:
    spec = LatentSpec(Noise(0), (Categorical(10), Continuous()))
    assert spec.entropies == (math.log(10), math.log(2))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Categorical(1), "2 classes or more, not 1"),
        (lambda: Continuous("free"), "not 'free'"),  # type: ignore[arg-type]
        (lambda: Continuous("clipped", (2.0, 0.1)), "0 < low < high"),
        (lambda: Noise(-1), "not -1"),
        (lambda: Noise(3, "cauchy"), "not 'cauchy'"),  # type: ignore[arg-type]
        (lambda: LatentSpec(Noise(1), (Continuous(), Categorical(3))), "come before"),
        (lambda: LatentSpec(Noise(0), ()), "has neither"),
        (
            lambda: draw_codes(LatentSpec(Noise(1), ()), 0, 0, Stream.D_STEP, 1, impl="cuda"),
            "'cuda'",
        ),
    ],
)
def test_invalid_arguments(make, says: str) -> None:  # noqa: ANN001 - any of the above
    with pytest.raises(InputError, match=says):
        make()
