"""Random numbers: the published vectors, NumPy against C++."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from fastinfogan_kernels import philox
from fastinfogan_kernels.inputs import draw
from fastinfogan_kernels.latents import NUMPY_FUNCTIONS, RandomFunctions
from fastinfogan_kernels.runtime.launch import Implementation

# Random123's kat_vectors for philox4x32 with 10 rounds: counter, key, result.
KNOWN_ANSWERS = [
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]  # fmt: skip


@pytest.fixture
def by(impl: Implementation) -> RandomFunctions:
    return draw.random_functions(impl)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_the_published_vectors(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...], impl: Implementation
) -> None:
    if impl == "reference":
        block = philox.philox4x32(np.array(counter, np.uint32), key).tolist()
    else:
        from fastinfogan_kernels import _native

        block = _native.encrypt(counter, *key)
    assert tuple(block) == expected


@given(
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 2**32 - 1),
    stream=st.integers(0, 2**32 - 1),
    rows=st.integers(0, 9),
    columns=st.integers(0, 13),
    first_row=st.integers(0, 2**32 - 10),
    bound=st.integers(2, 1000),
)
def test_native_is_numpy_bit_for_bit(
    native: Implementation,
    seed: int,
    step: int,
    stream: int,
    rows: int,
    columns: int,
    first_row: int,
    bound: int,
) -> None:
    by_native = draw.random_functions(native)
    words = philox.words(seed, step, stream, rows, columns, first_row)
    assert np.array_equal(words, by_native.words(seed, step, stream, rows, columns, first_row))
    for name in ("uniform", "normal"):
        expected, actual = getattr(NUMPY_FUNCTIONS, name)(words), getattr(by_native, name)(words)
        assert expected.dtype == actual.dtype == np.float32
        assert np.array_equal(expected.view(np.uint32), actual.view(np.uint32))
    assert np.array_equal(NUMPY_FUNCTIONS.below(words, bound), by_native.below(words, bound))


def test_normal_of_evenly_spaced_words(by: RandomFunctions) -> None:
    words = np.linspace(0, 2**32 - 1, 100_001).astype(np.uint32)
    assert np.array_equal(by.normal(words), philox.normal(words))
    exact = np.sqrt(2) * special.erfinv(philox.uniform(words).astype(np.float64))
    assert np.abs(by.normal(words) - exact).max() < 2e-6


def test_uniform_is_symmetric_and_open(by: RandomFunctions) -> None:
    ends = by.uniform(np.array([0, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF], np.uint32))
    step = np.float32(2.0**-24)
    assert ends.tolist() == [step - 1, step - 1, -step, step, 1 - step]


def test_a_row_does_not_depend_on_its_batch(by: RandomFunctions) -> None:
    whole = by.words(7, 3, 2, 20, 9, 0)
    assert np.array_equal(whole[12:17], by.words(7, 3, 2, 5, 9, 12))
    assert np.array_equal(whole[:, :6], by.words(7, 3, 2, 20, 6, 0))
