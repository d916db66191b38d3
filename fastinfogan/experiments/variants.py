"""Where the published sources disagree: each departure from the paper by its name.

"paper" is the article's Section 7 and appendix, "released code" the authors' for MNIST, "research
code" theirs for 3D Faces and Chairs.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from fastinfogan.errors import InputError
from fastinfogan.experiments.tables import BASES, Experiment
from fastinfogan_kernels.latents import Categorical, Continuous, DeviationKind, Noise

# What an experiment's defaults take from no published source.
OURS = {
    "mnist": "lambda 0.1 on continuous codes is our number: the paper says smaller and gives none",
    "sprites": "networks, codes and lambda of InfoGAN-CR's baseline (Lin et al. 2020); learning "
    "rates, no spectral norm in D and 20,000 iterations are ours",
}


@dataclass(frozen=True)
class Variant:
    """A named departure from the paper's defaults.

    Attributes:
        facets: what it decides; two variants that decide the same cannot be combined.
        about: one line, with its source.
        change: gives the experiment so changed.
    """

    facets: frozenset[str]
    about: str
    change: Callable[[Experiment], Experiment]


def _settings(facet: str, about: str, **fields: float) -> Variant:
    return Variant(frozenset({facet}), about, lambda e: replace(e, **fields))  # type: ignore[arg-type]


def _with_deviation(e: Experiment, kind: DeviationKind) -> Experiment:
    codes = tuple(
        replace(c, deviation=kind) if isinstance(c, Continuous) else c for c in e.latents.codes
    )
    return replace(e, latents=replace(e.latents, codes=codes))


def _with_codes(facet: str, about: str, codes: tuple[Categorical | Continuous, ...]) -> Variant:
    def change(e: Experiment) -> Experiment:
        return replace(e, latents=replace(e.latents, codes=codes))

    return Variant(frozenset({facet}), about, change)


def _research(e: Experiment) -> Experiment:
    trunk = (*e.trunk[:-1], replace(e.trunk[-1], batch_norm=False))
    return replace(_with_deviation(e, "clipped"), trunk=trunk)


_SLOPE = {
    "slope-0.01": _settings("slope", "leaky slope 0.01 (released code)", slope=0.01),
}
_NOISE = {
    "normal-noise": Variant(
        frozenset({"noise"}),
        "noise from N(0, 1); the paper names no prior",
        lambda e: replace(
            e, latents=replace(e.latents, noise=Noise(e.latents.noise.size, "normal"))
        ),
    ),
}
_DEVIATION = {
    "fixed-deviation": Variant(
        frozenset({"deviation"}),
        "Q's Gaussians have standard deviation 1 (released code)",
        lambda e: _with_deviation(e, "fixed"),
    ),
    "clipped-deviation": Variant(
        frozenset({"deviation"}),
        "Q's standard deviations clipped to [0.1, 2.0] (research code)",
        lambda e: _with_deviation(e, "clipped"),
    ),
}
_RESEARCH = {
    "research": Variant(
        frozenset({"deviation", "trunk"}),
        "no batch norm on the trunk's FC 1024, clipped deviations (research code)",
        _research,
    ),
}

# Where a facet decides the codes, it comes before the facet that decides their deviations.
VARIANTS: dict[str, dict[str, Variant]] = {
    "mnist": {
        "categorical-only": _with_codes(
            "codes", "c ~ Cat(10) alone (paper, Figure 1)", (Categorical(10),)
        ),
        "released": Variant(
            frozenset({"slope", "deviation", "lambda"}),
            "slope 0.01, standard deviation 1, lambda 1 on every code (released code)",
            lambda e: replace(_with_deviation(e, "fixed"), slope=0.01, lambda_continuous=1.0),
        ),
        "lambda-1": _settings(
            "lambda", "lambda 1 on continuous codes too (released code)", lambda_continuous=1.0
        ),
        **_SLOPE,
        **_DEVIATION,
        **_NOISE,
    },
    "svhn": {
        "two-codes": _with_codes(
            "codes",
            "2 continuous codes (paper, main text; its appendix says 4)",
            (Categorical(10),) * 4 + (Continuous(),) * 2,
        ),
        **_SLOPE,
        **_DEVIATION,
        **_NOISE,
    },
    "celeba": {**_SLOPE, **_NOISE},
    "faces": {
        "azimuth": _settings(
            "factor", "D 2e-4, G 5e-4, lambda 0.2 (paper); the default",
            learning_rate_d=2e-4, learning_rate_g=5e-4, lambda_continuous=0.2,
        ),
        "elevation": _settings(
            "factor", "D 4e-4, G 3e-4, lambda 0.1 (paper)",
            learning_rate_d=4e-4, learning_rate_g=3e-4, lambda_continuous=0.1,
        ),
        "lighting": _settings(
            "factor", "D 8e-4, G 3e-4, lambda 0.1 (paper)",
            learning_rate_d=8e-4, learning_rate_g=3e-4, lambda_continuous=0.1,
        ),
        "width": _settings(
            "factor", "wide or narrow: D 8e-4, G 3e-4, lambda 0.1 (paper)",
            learning_rate_d=8e-4, learning_rate_g=3e-4, lambda_continuous=0.1,
        ),
        **_RESEARCH,
        **_SLOPE,
        **_DEVIATION,
        **_NOISE,
    },
    "chairs": {
        "four-codes": _with_codes(
            "codes",
            "4 categorical codes (paper, main text; its appendix says 3)",
            (Categorical(20),) * 4 + (Continuous(),),
        ),
        "rotation": _settings(
            "factor", "lambda 10 on the continuous code, 1 on the others (paper); the default",
            lambda_continuous=10.0, lambda_categorical=1.0,
        ),
        "width": _settings(
            "factor", "lambda 0.05 on the continuous code, 2 on the others (paper)",
            lambda_continuous=0.05, lambda_categorical=2.0,
        ),
        **_RESEARCH,
        **_SLOPE,
        **_DEVIATION,
        **_NOISE,
    },
    "sprites": {
        "shape-code": _with_codes(
            "codes",
            "1 of 3 classes and 4 continuous codes (ours: sprites have 3 shapes)",
            (Categorical(3),) + (Continuous("fixed"),) * 4,
        ),
        "learned-deviation": Variant(
            frozenset({"deviation"}),
            "Q's standard deviations learned, as in the paper (ours)",
            lambda e: _with_deviation(e, "learned"),
        ),
        **_NOISE,
    },
}  # fmt: skip

_DEFAULTS = {"faces": ("azimuth",), "chairs": ("rotation",)}


def to_train(name: str, asked: Iterable[str] = ()) -> tuple[str, ...]:
    """The variants that a run takes if these are asked for.

    For faces and chairs "research" is added: the authors' own code for them leaves out the batch
    norm that the paper's tables have in front of the heads. By the tables D, whose logits batch
    norm then gives the same mean on real and on generated images, taught G nothing but patterns of
    single pixels on `faces3d`; by the research code G makes heads after 400 iterations. "paper", or
    a variant that decides the same as "research", leaves it out.

    Args:
        name: the experiment.
        asked: names from `VARIANTS[name]`, or "paper".
    """
    chosen = tuple(asked)
    known = VARIANTS.get(name, {})
    if "research" not in known or "paper" in chosen:
        return chosen
    decided = {facet for v in chosen if v in known for facet in known[v].facets}
    return chosen if decided & known["research"].facets else (*chosen, "research")


def get(name: str, variants: Iterable[str] = ()) -> Experiment:
    """The experiment of that name, with variants applied.

    Args:
        name: mnist, svhn, celeba, faces, chairs or sprites.
        variants: names from `VARIANTS[name]`, in any order; "paper" names the defaults.

    Raises:
        InputError: no such experiment or variant, or two variants that decide the same.
    """
    if name not in BASES:
        raise InputError(f"no experiment {name!r}; there are {', '.join(BASES)}")
    known = VARIANTS[name]
    asked = [v for v in dict.fromkeys(variants) if v != "paper"]
    decided: dict[str, str] = {}
    for variant in asked:
        if variant not in known:
            raise InputError(f"{name} has no variant {variant!r}; it has paper, {', '.join(known)}")
        for facet in known[variant].facets:
            if facet in decided:
                raise InputError(
                    f"variants {decided[facet]!r} and {variant!r} both decide the {facet}; name one"
                )
            decided[facet] = variant
    default = [v for v in _DEFAULTS.get(name, ()) if not known[v].facets & decided.keys()]
    experiment = BASES[name]
    for variant in known:
        if variant in asked or variant in default:
            experiment = known[variant].change(experiment)
    return replace(experiment, variants=tuple(v for v in known if v in asked or v in default))
