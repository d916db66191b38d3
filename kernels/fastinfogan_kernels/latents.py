"""Noise and codes (categorical and continuous): their layout, prior and drawing.

A `LatentSpec` defines how a row of G's input and a row of Q's output are laid out, the prior's
entropy, and how a row is drawn. Needs NumPy alone.

    G's input:  noise | one-hot of each categorical | continuous codes
    Q's output: logits of each categorical | means of the continuous | their raw deviations
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fastinfogan_kernels import philox
from fastinfogan_kernels.errors import InputError

DeviationKind = Literal["learned", "fixed", "clipped"]


@dataclass(frozen=True)
class Categorical:
    """A code c ~ Cat(classes), uniform.

    Attributes:
        classes: how many values it takes, 2 or more.
    """

    classes: int

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise InputError(f"a categorical code needs 2 classes or more, not {self.classes}")

    @property
    def entropy(self) -> float:
        """H(c) in nats."""
        return math.log(self.classes)


@dataclass(frozen=True)
class Continuous:
    """A code c ~ U(-1, 1), for which Q gives a Gaussian.

    Attributes:
        deviation: the Gaussian's standard deviation. "learned": exp of Q's raw output (paper);
            "fixed": 1 (released code, MNIST); "clipped": exp of the raw output, clipped
            (research code). Q has the raw output in every case.
        clip: the bounds of "clipped".
    """

    deviation: DeviationKind = "learned"
    clip: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        if self.deviation not in ("learned", "fixed", "clipped"):
            raise InputError(
                f"deviation is 'learned', 'fixed' or 'clipped', not {self.deviation!r}"
            )
        if not 0.0 < self.clip[0] < self.clip[1]:
            raise InputError(f"clip needs 0 < low < high, not {self.clip}")

    @property
    def entropy(self) -> float:
        """Differential entropy H(c) of U(-1, 1) in nats."""
        return math.log(2.0)


@dataclass(frozen=True)
class Noise:
    """The incompressible part z of G's input.

    Attributes:
        size: how many numbers.
        prior: "uniform" for U(-1, 1), "normal" for N(0, 1).
    """

    size: int
    prior: Literal["uniform", "normal"] = "uniform"

    def __post_init__(self) -> None:
        if self.size < 0:
            raise InputError(f"the noise's size is 0 or more, not {self.size}")
        if self.prior not in ("uniform", "normal"):
            raise InputError(f"the noise's prior is 'uniform' or 'normal', not {self.prior!r}")


@dataclass(frozen=True)
class Latents:
    """Rows of noise and code, as drawn or as set by hand.

    Attributes:
        noise: float32 (rows, noise size).
        classes: int64 (rows, categorical codes), each in [0, its classes).
        continuous: float32 (rows, continuous codes).
    """

    noise: NDArray[np.float32]
    classes: NDArray[np.int64]
    continuous: NDArray[np.float32]


@dataclass(frozen=True)
class RandomFunctions:
    """The functions by which `LatentSpec.draw` draws: those of `philox`, or their equals in C++."""

    words: Callable[[int, int, int, int, int, int], philox.Words]
    uniform: Callable[[philox.Words], philox.Floats]
    normal: Callable[[philox.Words], philox.Floats]
    below: Callable[[philox.Words, int], NDArray[np.int64]]


NUMPY_FUNCTIONS = RandomFunctions(philox.words, philox.uniform, philox.normal, philox.below)


@dataclass(frozen=True)
class LatentSpec:
    """The layout and the prior of noise and code.

    Attributes:
        noise: the noise.
        codes: the codes, named c1, c2, ...; categorical ones before continuous ones.
    """

    noise: Noise
    codes: tuple[Categorical | Continuous, ...]

    def __post_init__(self) -> None:
        kinds = [isinstance(code, Continuous) for code in self.codes]
        if kinds != sorted(kinds):
            raise InputError("categorical codes come before continuous codes")
        if self.input_width == 0:
            raise InputError("G needs noise or codes as its input, and has neither")

    @property
    def categorical(self) -> tuple[Categorical, ...]:
        """The categorical codes, in order."""
        return tuple(code for code in self.codes if isinstance(code, Categorical))

    @property
    def continuous(self) -> tuple[Continuous, ...]:
        """The continuous codes, in order."""
        return tuple(code for code in self.codes if isinstance(code, Continuous))

    @property
    def names(self) -> tuple[str, ...]:
        """The paper's names of the codes: c1, c2, ..."""
        return tuple(f"c{i + 1}" for i in range(len(self.codes)))

    @property
    def entropies(self) -> tuple[float, ...]:
        """H(c) of each code in nats."""
        return tuple(code.entropy for code in self.codes)

    @property
    def _one_hot_width(self) -> int:
        return sum(code.classes for code in self.categorical)

    @property
    def input_width(self) -> int:
        """Width of a row of G's input."""
        return self.noise.size + self._one_hot_width + len(self.continuous)

    @property
    def output_width(self) -> int:
        """Width of a row of Q's output: the classes, and two numbers per continuous code."""
        return self._one_hot_width + 2 * len(self.continuous)

    @property
    def one_hot_slices(self) -> tuple[slice, ...]:
        """Where each categorical code stands in a row of G's input."""
        return self._class_slices(self.noise.size)

    @property
    def continuous_slice(self) -> slice:
        """Where the continuous codes stand in a row of G's input."""
        return slice(self.input_width - len(self.continuous), self.input_width)

    @property
    def logit_slices(self) -> tuple[slice, ...]:
        """Where each categorical code's logits stand in a row of Q's output."""
        return self._class_slices(0)

    @property
    def mean_slice(self) -> slice:
        """Where the Gaussians' means stand in a row of Q's output."""
        return slice(self._one_hot_width, self._one_hot_width + len(self.continuous))

    @property
    def deviation_slice(self) -> slice:
        """Where the Gaussians' raw deviations (before exp) stand in a row of Q's output."""
        return slice(self.output_width - len(self.continuous), self.output_width)

    def _class_slices(self, start: int) -> tuple[slice, ...]:
        slices = []
        for code in self.categorical:
            slices.append(slice(start, start + code.classes))
            start += code.classes
        return tuple(slices)

    def draw(
        self,
        seed: int,
        step: int,
        stream: int,
        rows: int,
        *,
        first_row: int = 0,
        functions: RandomFunctions = NUMPY_FUNCTIONS,
    ) -> Latents:
        """Draw rows from the prior.

        A row takes one Philox word per noise number, per categorical and per continuous code, in
        that order; see `philox.words` for what the arguments key.

        Returns:
            The drawn noise and code.
        """
        n, k = self.noise.size, len(self.categorical)
        f = functions
        drawn = f.words(seed, step, stream, rows, n + len(self.codes), first_row)

        def columns(start: int, stop: int) -> philox.Words:
            return np.ascontiguousarray(drawn[:, start:stop])

        noise = (f.normal if self.noise.prior == "normal" else f.uniform)(columns(0, n))
        classes = np.empty((rows, k), np.int64)
        for i, code in enumerate(self.categorical):
            classes[:, i] = f.below(columns(n + i, n + i + 1), code.classes)[:, 0]
        return Latents(noise, classes, f.uniform(columns(n + k, drawn.shape[1])))

    def generator_input(self, latents: Latents) -> NDArray[np.float32]:
        """Lay noise and code out as G's input.

        Returns:
            float32 (rows, input_width).
        """
        rows = np.zeros((latents.noise.shape[0], self.input_width), np.float32)
        rows[:, : self.noise.size] = latents.noise
        for i, columns in enumerate(self.one_hot_slices):
            rows[np.arange(len(rows)), columns.start + latents.classes[:, i]] = 1.0
        rows[:, self.continuous_slice] = latents.continuous
        return rows
