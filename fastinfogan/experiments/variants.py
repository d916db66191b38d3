"""Named changes of an experiment, one for each point in which its published sources differ.

"paper" is the article's Section 7 and appendix, "released code" the authors' for MNIST, "research
code" theirs for 3D Faces and Chairs.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from fastinfogan.errors import InputError
from fastinfogan.experiments.spec import Experiment
from fastinfogan_kernels.latents import Categorical, Continuous, DeviationKind, Noise


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
