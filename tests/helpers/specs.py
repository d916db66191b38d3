"""Specs of codes, outputs and codes drawn for them, and a bound on errors."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from fastinfogan_kernels.latents import Categorical, Continuous, LatentSpec, Noise


def spec_of(*codes: Categorical | Continuous) -> LatentSpec:
    """Return a spec of these codes."""
    return LatentSpec(Noise(1), codes)


def any_codes(classes: int = 1000, at_most: int = 6) -> st.SearchStrategy[LatentSpec]:
    """Draw any mix of up to 2 * at_most codes, of every kind."""
    clip = st.tuples(st.floats(1e-3, 1.0), st.floats(1.01, 1e3))
    continuous = st.builds(Continuous, st.sampled_from(["learned", "fixed", "clipped"]), clip)
    mixes = st.tuples(
        st.lists(st.builds(Categorical, st.integers(2, classes)), max_size=at_most),
        st.lists(continuous, max_size=at_most),
    ).filter(lambda mix: bool(mix[0] or mix[1]))
    return mixes.map(lambda mix: spec_of(*mix[0], *mix[1]))


def any_spec(
    noise: int = 70, classes: int = 1000, most_categorical: int = 4, most_continuous: int = 6
) -> st.SearchStrategy[LatentSpec]:
    """Draw any noise and numbers of codes."""
    return st.builds(
        lambda noise, classes, continuous: LatentSpec(
            noise, tuple(map(Categorical, classes)) + (Continuous(),) * continuous
        ),
        st.builds(Noise, st.integers(1, noise), st.sampled_from(["uniform", "normal"])),
        st.lists(st.integers(2, classes), max_size=most_categorical),
        st.integers(0, most_continuous),
    )


MIXED = spec_of(
    Categorical(3),
    Categorical(70),
    Continuous(),
    Continuous("fixed"),
    Continuous("clipped", (0.5, 2.0)),
)
"""A code of every kind."""
WEIGHTS = (1.0, 2.0, 0.5, 0.1, 10.0)


@dataclass(frozen=True)
class Drawn:
    """Q's output, fp32, and codes."""

    spec: LatentSpec
    output: Tensor
    classes: Tensor
    continuous: Tensor


def drawn(spec: LatentSpec, rows: int, seed: int = 1, spread: float = 2.0) -> Drawn:
    """Draw normal outputs with this standard deviation, and codes from the prior."""
    source = torch.Generator().manual_seed(seed)
    output = torch.randn(rows, spec.output_width, generator=source) * spread
    classes = torch.empty(rows, len(spec.categorical), dtype=torch.int64)
    for i, code in enumerate(spec.categorical):
        classes[:, i] = torch.randint(code.classes, (rows,), generator=source)
    continuous = torch.rand(rows, len(spec.continuous), generator=source) * 2 - 1
    return Drawn(spec, output, classes, continuous)


def assert_as_good(actual: Tensor, baseline: Tensor, truth: Tensor, tolerance: float) -> None:
    """Check that each element's error is at most twice the baseline's, plus a tolerance.

    Args:
        actual: what is tested.
        baseline: torch's result at the same precision.
        truth: fp64.
        tolerance: relative to the truth's magnitude, or absolute under 1.
    """
    error = (actual.double() - truth).abs()
    baseline_error = (baseline.double() - truth).abs()
    scale = truth.abs().clamp(min=1.0)
    assert bool((error <= 2 * baseline_error + tolerance * scale).all()), (error / scale).max()
