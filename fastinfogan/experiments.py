"""The paper's five experiments, and where the published sources disagree, each one's variants.

Floor 0: plain data. The block tables are the paper's Tables 1 to 6, the settings those of its
Section 7 and appendix ("paper"), of the authors' released MNIST code ("released code") and of their
research code for 3D Faces and Chairs ("research code").
"""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from fastinfogan.errors import InputError, check_fields
from fastinfogan.latents import Categorical, Continuous, DeviationKind, LatentSpec, Noise

Activation = Literal["none", "relu", "leaky_relu", "sigmoid", "tanh"]


@dataclass(frozen=True)
class Block:
    """One line of a network table: a linear map, batch norm or not, an activation.

    Attributes:
        kind: "conv", "upconv" (transposed convolution) or "linear".
        channels: what comes out. With `height` and `width`, a linear block's height * width *
            channels features are the (height, width, channels) map that the next block reads.
        kernel: side of a convolution's window.
        stride: step of a convolution; an upconv multiplies the sides by it. Padding is "SAME".
        batch_norm: whether batch norm stands between map and activation.
        activation: "leaky_relu" takes its slope from the experiment.
        height: of the map that a linear block's features form, else 0.
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
        """How many features a linear block gives."""
        return self.channels * max(self.height * self.width, 1)


@dataclass(frozen=True)
class Experiment:
    """All that says what is trained and how; everything but data, seed and machine.

    Attributes:
        name: mnist, svhn, celeba, faces or chairs.
        variants: names of the variants applied, see `VARIANTS`.
        height: of an image in pixels.
        width: of an image in pixels.
        channels: 1 or 3.
        latents: noise and code.
        trunk: the blocks that D and Q share.
        q_head: Q's blocks before its output layer.
        generator: G's blocks; the last one's sigmoid or tanh fixes the images' range.
        slope: of every leaky ReLU.
        learning_rate_d: Adam's, for trunk, D head and Q head.
        learning_rate_g: Adam's, for the generator.
        lambda_categorical: weight of the categorical codes' MI bound.
        lambda_continuous: weight of the continuous codes' MI bound.
        iterations: how long the published run is; for SVHN and CelebA none is published.
        batch_size: rows of real and of generated images in a step.
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
    trunk: tuple[Block, ...]
    q_head: tuple[Block, ...]
    generator: tuple[Block, ...]
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

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON can hold them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Experiment":
        """What `to_dict` gave, also after a way through JSON.

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
                part: tuple(Block(**block) for block in fields[part])
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


def _conv(channels: int, stride: int = 2, *, batch_norm: bool = True) -> Block:
    return Block("conv", channels, 4, stride, batch_norm)


def _upconv(
    channels: int, stride: int = 2, *, batch_norm: bool = True, activation: Activation = "relu"
) -> Block:
    return Block("upconv", channels, 4, stride, batch_norm, activation)


def _linear(channels: int, activation: Activation, height: int = 0, width: int = 0) -> Block:
    return Block("linear", channels, activation=activation, height=height, width=width)


def _image(channels: int, activation: Activation) -> Block:
    return _upconv(channels, batch_norm=False, activation=activation)


_FIRST = _conv(64, batch_norm=False)

MNIST = Experiment(
    name="mnist",
    height=28,
    width=28,
    channels=1,
    latents=LatentSpec(Noise(62), (Categorical(10), Continuous(), Continuous())),
    trunk=(_FIRST, _conv(128), _linear(1024, "leaky_relu")),
    q_head=(_linear(128, "leaky_relu"),),
    generator=(
        _linear(1024, "relu"),
        _linear(128, "relu", 7, 7),
        _upconv(64),
        _image(1, "sigmoid"),
    ),
    # See OURS. At 1 a learned deviation outweighs the digit; 0.1 is the number of the faces.
    lambda_continuous=0.1,
    iterations=5_000,
    sweep=(-2.0, 2.0),
)

SVHN = Experiment(
    name="svhn",
    height=32,
    width=32,
    channels=3,
    latents=LatentSpec(Noise(124), (Categorical(10),) * 4 + (Continuous(),) * 4),
    trunk=(_FIRST, _conv(128), _conv(256)),
    q_head=(_linear(128, "leaky_relu"),),
    generator=(
        _linear(448, "relu", 2, 2),
        _upconv(256),
        _upconv(128, batch_norm=False),
        _upconv(64, batch_norm=False),
        _image(3, "tanh"),
    ),
)

CELEBA = replace(SVHN, name="celeba", latents=LatentSpec(Noise(128), (Categorical(10),) * 10))

FACES = Experiment(
    name="faces",
    height=32,
    width=32,
    channels=1,
    latents=LatentSpec(Noise(128), (Continuous(),) * 5),
    trunk=(_FIRST, _conv(128), _linear(1024, "leaky_relu")),
    q_head=(),
    generator=(
        _linear(1024, "relu"),
        _linear(128, "relu", 8, 8),
        _upconv(64),
        _image(1, "sigmoid"),
    ),
)

CHAIRS = Experiment(
    name="chairs",
    height=64,
    width=64,
    channels=1,
    latents=LatentSpec(Noise(128), (Categorical(20),) * 3 + (Continuous(),)),
    trunk=(
        _FIRST,
        _conv(128),
        _conv(256),
        _conv(256, stride=1),
        _conv(256, stride=1),
        _linear(1024, "leaky_relu"),
    ),
    q_head=(),
    generator=(
        _linear(1024, "relu"),
        _linear(256, "relu", 8, 8),
        _upconv(256, stride=1),
        _upconv(256, stride=1),
        _upconv(128),
        _upconv(64),
        _image(1, "sigmoid"),
    ),
)

BASES = {e.name: e for e in (MNIST, SVHN, CELEBA, FACES, CHAIRS)}


# What an experiment's defaults take from no published source.
OURS = {
    "mnist": "lambda 0.1 on continuous codes is our number: the paper says smaller and gives none",
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
}  # fmt: skip

_DEFAULTS = {"faces": ("azimuth",), "chairs": ("rotation",)}


def get(name: str, variants: Iterable[str] = ()) -> Experiment:
    """The experiment of that name, with variants applied.

    Args:
        name: mnist, svhn, celeba, faces or chairs.
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
