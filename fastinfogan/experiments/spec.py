"""What an experiment is, as plain data, and how a variant changes it."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fastinfogan.errors import InputError, check_fields
from fastinfogan_kernels.latents import Categorical, Continuous, DeviationKind, LatentSpec, Noise

Activation = Literal["none", "relu", "leaky_relu", "sigmoid", "tanh"]


@dataclass(frozen=True)
class BlockSpec:
    """One row of a network table: a convolution or linear layer, batch norm, activation.

    Attributes:
        kind: "conv", "upconv" (transposed convolution) or "linear".
        channels: of the output. With `height` and `width`, a linear block's height * width *
            channels features are the (height, width, channels) feature map of the next block.
        kernel: side of the filter, in pixels.
        stride: of a convolution; an upconv multiplies height and width by it. Padding is "SAME".
        batch_norm: whether batch norm precedes the activation.
        activation: "leaky_relu" takes its slope from the experiment.
        height: of the feature map that a linear block's output forms, else 0.
        width: likewise.
    """

    kind: Literal["conv", "upconv", "linear"]
    channels: int
    kernel: int = 0
    stride: int = 1
    batch_norm: bool = True
    activation: Activation = "leaky_relu"
    height: int = 0
    width: int = 0

    @property
    def features(self) -> int:
        """Output features of a linear block."""
        return self.channels * max(self.height * self.width, 1)


@dataclass(frozen=True)
class Experiment:
    """What is trained and how: everything but data, seed and machine.

    Attributes:
        name: unique among the experiments.
        height: of an image, in pixels.
        width: of an image, in pixels.
        channels: 1 or 3.
        latents: noise and codes.
        trunk: the blocks that D and Q share.
        q_head: Q's blocks before its output layer.
        generator: G's blocks; the last one's sigmoid or tanh fixes the images' range.
        variants: names of the variants applied.
        slope: of every leaky ReLU.
        learning_rate_d: Adam's, for trunk, D head and Q head.
        learning_rate_g: Adam's, for the generator.
        lambda_categorical: weight of the categorical codes' MI bound.
        lambda_continuous: weight of the continuous codes' MI bound.
        iterations: of a run by default; the published number where there is one.
        batch_size: real images of a step; as many are generated.
        beta1: Adam's.
        beta2: Adam's.
        epsilon: Adam's.
        sweep: the range over which the paper's figures vary a continuous code.
    """

    name: str
    height: int
    width: int
    channels: int
    latents: LatentSpec
    trunk: tuple[BlockSpec, ...]
    q_head: tuple[BlockSpec, ...]
    generator: tuple[BlockSpec, ...]
    variants: tuple[str, ...] = ()
    slope: float = 0.1
    learning_rate_d: float = 2e-4
    learning_rate_g: float = 1e-3
    lambda_categorical: float = 1.0
    lambda_continuous: float = 1.0
    iterations: int = 20_000
    batch_size: int = 128
    beta1: float = 0.5
    beta2: float = 0.999
    epsilon: float = 1e-8
    sweep: tuple[float, float] = (-1.0, 1.0)

    @property
    def image_range(self) -> tuple[float, float]:
        """What pixel values 0 and 255 are scaled to: the range of G's last activation."""
        return (-1.0, 1.0) if self.generator[-1].activation == "tanh" else (0.0, 1.0)

    @property
    def lambdas(self) -> list[float]:
        """Weight of each code's MI bound in the objective: that of the code's kind."""
        return [
            self.lambda_continuous if isinstance(code, Continuous) else self.lambda_categorical
            for code in self.latents.codes
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON can hold them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Experiment":
        """Build an experiment from the result of `to_dict`, also after JSON.

        Raises:
            InputError: a field is missing, unknown or of the wrong shape.
        """
        try:
            latents = fields["latents"]
            codes = tuple(
                Categorical(**code)
                if "classes" in code
                else Continuous(code["deviation"], tuple(code["clip"]))
                for code in latents["codes"]
            )
            tables = {
                part: tuple(BlockSpec(**block) for block in fields[part])
                for part in ("trunk", "q_head", "generator")
            }
            experiment = cls(
                **{
                    **fields,
                    **tables,
                    "latents": LatentSpec(Noise(**latents["noise"]), codes),
                    "variants": tuple(fields["variants"]),
                    "sweep": tuple(fields["sweep"]),
                }
            )
            parts = (*experiment.trunk, *experiment.q_head, *experiment.generator)
            for part in (experiment, experiment.latents.noise, *codes, *parts):
                check_fields(part)
        except (KeyError, TypeError, InputError) as error:
            raise InputError(f"not the description of an experiment: {error}") from error
        return experiment


@dataclass(frozen=True)
class Variant:
    """A named change of an experiment's table.

    Attributes:
        facets: what it sets; two variants that set the same facet cannot be combined.
        about: one line, with its source.
        change: returns the changed experiment.
    """

    facets: frozenset[str]
    about: str
    change: Callable[[Experiment], Experiment]


@dataclass(frozen=True)
class Entry:
    """An experiment as it can be trained by name.

    Attributes:
        experiment: its table.
        data: the images where none are given: "digits" for the embedded ones, the name of a
            rendered set, or None if there are none.
        variants: by name, in the order in which they are applied: those that set the codes before
            those that set the codes' deviations.
        defaults: variants that are applied unless another one sets the same facet.
        training_defaults: variants that `to_train` adds, unless another one sets the same facet or
            "paper" is requested.
        about: what of the table comes from no published source.
    """

    experiment: Experiment
    data: str | None = None
    variants: Mapping[str, Variant] = field(default_factory=dict)
    defaults: tuple[str, ...] = ()
    training_defaults: tuple[str, ...] = ()
    about: str = ""

    def with_variants(self, names: Iterable[str]) -> Experiment:
        """Return the experiment with variants applied.

        Raises:
            InputError: no such variant, or two that set the same facet.
        """
        name, known = self.experiment.name, self.variants
        requested = [v for v in dict.fromkeys(names) if v != "paper"]
        facets: dict[str, str] = {}
        for variant in requested:
            if variant not in known:
                names = ", ".join(("paper", *known))
                raise InputError(f"{name} has no variant {variant!r}; it has {names}")
            for facet in known[variant].facets:
                if facet in facets:
                    raise InputError(
                        f"variants {facets[facet]!r} and {variant!r} both set the {facet}; name one"
                    )
                facets[facet] = variant
        defaults = [v for v in self.defaults if not known[v].facets & facets.keys()]
        applied = [v for v in known if v in requested or v in defaults]
        experiment = self.experiment
        for variant in applied:
            experiment = known[variant].change(experiment)
        return replace(experiment, variants=tuple(applied))

    def to_train(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return these variants and the training defaults that are compatible with them."""
        chosen = tuple(names)
        if "paper" in chosen:
            return chosen
        facets = {f for v in chosen if v in self.variants for f in self.variants[v].facets}
        added = (v for v in self.training_defaults if not self.variants[v].facets & facets)
        return (*chosen, *added)


def of_fields(facet: str, about: str, **fields: float) -> Variant:
    """Return a variant that sets fields of the experiment."""
    return Variant(frozenset({facet}), about, lambda e: replace(e, **fields))  # type: ignore[arg-type]


def with_deviation(e: Experiment, kind: DeviationKind) -> Experiment:
    """Return the experiment with this kind of standard deviation for every continuous code."""
    codes = tuple(
        replace(c, deviation=kind) if isinstance(c, Continuous) else c for c in e.latents.codes
    )
    return replace(e, latents=replace(e.latents, codes=codes))


def of_codes(about: str, codes: tuple[Categorical | Continuous, ...]) -> Variant:
    """Return a variant that sets the codes."""

    def change(e: Experiment) -> Experiment:
        return replace(e, latents=replace(e.latents, codes=codes))

    return Variant(frozenset({"codes"}), about, change)


def _research(e: Experiment) -> Experiment:
    trunk = (*e.trunk[:-1], replace(e.trunk[-1], batch_norm=False))
    return replace(with_deviation(e, "clipped"), trunk=trunk)


SLOPE = {
    "slope-0.01": of_fields("slope", "leaky slope 0.01 (released code)", slope=0.01),
}
NOISE = {
    "normal-noise": Variant(
        frozenset({"noise"}),
        "noise from N(0, 1); the paper names no prior",
        lambda e: replace(
            e, latents=replace(e.latents, noise=Noise(e.latents.noise.size, "normal"))
        ),
    ),
}
DEVIATION = {
    "fixed-deviation": Variant(
        frozenset({"deviation"}),
        "Q's Gaussians have standard deviation 1 (released code)",
        lambda e: with_deviation(e, "fixed"),
    ),
    "clipped-deviation": Variant(
        frozenset({"deviation"}),
        "Q's standard deviations clipped to [0.1, 2.0] (research code)",
        lambda e: with_deviation(e, "clipped"),
    ),
}
RESEARCH = {
    "research": Variant(
        frozenset({"deviation", "trunk"}),
        "no batch norm on the trunk's FC 1024, clipped deviations (research code)",
        _research,
    ),
}
