"""The experiments: the paper's five (Tables 1 to 6), and sprites as others train them.

A new experiment is one more `Entry` of `EXPERIMENTS`.
"""

from collections.abc import Iterable
from dataclasses import replace

from fastinfogan.errors import InputError
from fastinfogan.experiments.spec import (
    DEVIATION,
    NOISE,
    RESEARCH,
    SLOPE,
    Activation,
    BlockSpec,
    Entry,
    Experiment,
    Variant,
    of_codes,
    of_fields,
    with_deviation,
)
from fastinfogan_kernels.latents import Categorical, Continuous, LatentSpec, Noise


def _conv(channels: int, stride: int = 2, *, batch_norm: bool = True) -> BlockSpec:
    return BlockSpec("conv", channels, 4, stride, batch_norm)


def _upconv(
    channels: int, stride: int = 2, *, batch_norm: bool = True, activation: Activation = "relu"
) -> BlockSpec:
    return BlockSpec("upconv", channels, 4, stride, batch_norm, activation)


def _linear(channels: int, activation: Activation, height: int = 0, width: int = 0) -> BlockSpec:
    return BlockSpec("linear", channels, activation=activation, height=height, width=width)


def _image(channels: int, activation: Activation) -> BlockSpec:
    return _upconv(channels, batch_norm=False, activation=activation)


_FIRST = _conv(64, batch_norm=False)

_MNIST = Experiment(
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
    # At 1 a learned deviation outweighs the digit; 0.1 is the paper's number for the faces.
    lambda_continuous=0.1,
    iterations=5_000,
    sweep=(-2.0, 2.0),
)

_SVHN = Experiment(
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

_CELEBA = replace(_SVHN, name="celeba", latents=LatentSpec(Noise(128), (Categorical(10),) * 10))

_FACES = Experiment(
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

_CHAIRS = Experiment(
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

# Not in the paper. Widths, codes, noise, deviation 1 and lambda are those by which Lin et al. 2020
# (InfoGAN-CR, arXiv 1906.06034, and its code) train InfoGAN on dSprites, after the networks of Kim
# and Mnih 2018 (FactorVAE); nor has their D batch norm. Ours: ReLU and batch norm in G as in the
# paper, D without their spectral norm, the paper's learning rates (theirs: 2e-3 and 1e-3) and its
# batch of 128 (theirs: 64).
_SPRITES = Experiment(
    name="sprites",
    height=64,
    width=64,
    channels=1,
    latents=LatentSpec(Noise(5), (Continuous("fixed"),) * 5),
    trunk=(
        *(_conv(channels, batch_norm=False) for channels in (32, 32, 64, 64)),
        replace(_linear(128, "leaky_relu"), batch_norm=False),
    ),
    q_head=(replace(_linear(128, "leaky_relu"), batch_norm=False),),
    generator=(
        _linear(128, "relu"),
        _linear(64, "relu", 4, 4),
        _upconv(64),
        _upconv(32),
        _upconv(32),
        _image(1, "sigmoid"),
    ),
    lambda_continuous=0.05,
)


def _factor(about: str, rate_d: float, rate_g: float, weight: float) -> Variant:
    """Return the learning rates and lambda by which the paper has a factor of faces learned."""
    return of_fields(
        "factor",
        about,
        learning_rate_d=rate_d,
        learning_rate_g=rate_g,
        lambda_continuous=weight,
    )


EXPERIMENTS: dict[str, Entry] = {
    entry.experiment.name: entry
    for entry in (
        Entry(
            _MNIST,
            data="digits",
            variants={
                "categorical-only": of_codes(
                    "c ~ Cat(10) alone (paper, Figure 1)", (Categorical(10),)
                ),
                "released": Variant(
                    frozenset({"slope", "deviation", "lambda"}),
                    "slope 0.01, standard deviation 1, lambda 1 on every code (released code)",
                    lambda e: replace(
                        with_deviation(e, "fixed"), slope=0.01, lambda_continuous=1.0
                    ),
                ),
                "lambda-1": of_fields(
                    "lambda",
                    "lambda 1 on continuous codes too (released code)",
                    lambda_continuous=1.0,
                ),
                **SLOPE,
                **DEVIATION,
                **NOISE,
            },
            about="lambda 0.1 on continuous codes is ours: the paper says smaller, and gives none",
        ),
        Entry(
            _SVHN,
            variants={
                "two-codes": of_codes(
                    "2 continuous codes (paper, main text; its appendix says 4)",
                    (Categorical(10),) * 4 + (Continuous(),) * 2,
                ),
                **SLOPE,
                **DEVIATION,
                **NOISE,
            },
        ),
        Entry(
            _CELEBA,
            variants={**SLOPE, **NOISE},
        ),
        Entry(
            _FACES,
            data="faces3d",
            variants={
                "azimuth": _factor(
                    "D 2e-4, G 5e-4, lambda 0.2 (paper); the default", 2e-4, 5e-4, 0.2
                ),
                "elevation": _factor("D 4e-4, G 3e-4, lambda 0.1 (paper)", 4e-4, 3e-4, 0.1),
                "lighting": _factor("D 8e-4, G 3e-4, lambda 0.1 (paper)", 8e-4, 3e-4, 0.1),
                "width": _factor(
                    "wide or narrow: D 8e-4, G 3e-4, lambda 0.1 (paper)", 8e-4, 3e-4, 0.1
                ),
                **RESEARCH,
                **SLOPE,
                **DEVIATION,
                **NOISE,
            },
            defaults=("azimuth",),
            training_defaults=("research",),
        ),
        Entry(
            _CHAIRS,
            data="chairs3d",
            variants={
                "four-codes": of_codes(
                    "4 categorical codes (paper, main text; its appendix says 3)",
                    (Categorical(20),) * 4 + (Continuous(),),
                ),
                "rotation": of_fields(
                    "factor",
                    "lambda 10 on the continuous code, 1 on the others (paper); the default",
                    lambda_continuous=10.0,
                    lambda_categorical=1.0,
                ),
                "width": of_fields(
                    "factor",
                    "lambda 0.05 on the continuous code, 2 on the others (paper)",
                    lambda_continuous=0.05,
                    lambda_categorical=2.0,
                ),
                **RESEARCH,
                **SLOPE,
                **DEVIATION,
                **NOISE,
            },
            defaults=("rotation",),
            training_defaults=("research",),
        ),
        Entry(
            _SPRITES,
            data="sprites",
            variants={
                "shape-code": of_codes(
                    "1 of 3 classes and 4 continuous codes (ours: sprites have 3 shapes)",
                    (Categorical(3),) + (Continuous("fixed"),) * 4,
                ),
                "learned-deviation": Variant(
                    frozenset({"deviation"}),
                    "Q's standard deviations learned, as in the paper (ours)",
                    lambda e: with_deviation(e, "learned"),
                ),
                **NOISE,
            },
            about=(
                "networks, codes and lambda of InfoGAN-CR's baseline (Lin et al. 2020); learning "
                "rates, no spectral norm in D and 20,000 iterations are ours"
            ),
        ),
    )
}


def get(name: str, variants: Iterable[str] = ()) -> Experiment:
    """Return the experiment of that name, with variants applied.

    Args:
        name: a key of `EXPERIMENTS`.
        variants: names of its variants, in any order; "paper" names the defaults.

    Raises:
        InputError: no such experiment or variant, or two variants that set the same facet.
    """
    if name not in EXPERIMENTS:
        raise InputError(f"no experiment {name!r}; there are {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name].with_variants(variants)


def to_train(name: str, variants: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the variants that a run takes if these are requested.

    For faces and chairs "research" is added: the authors' own code for them leaves out the batch
    norm that the paper's tables have in front of the heads. By the tables D, whose logits batch
    norm then gives the same mean on real and on generated images, teaches G nothing but patterns of
    single pixels on `faces3d`; by the research code G makes heads after 400 iterations. "paper", or
    a variant that sets the same facets as "research", leaves it out.
    """
    return EXPERIMENTS[name].to_train(variants) if name in EXPERIMENTS else tuple(variants)
