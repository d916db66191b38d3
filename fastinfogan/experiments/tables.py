"""What an experiment is, the paper's five (Tables 1 to 6), and sprites as others train them."""

import dataclasses
from dataclasses import dataclass, replace
from typing import Any, Literal

from fastinfogan.errors import InputError, check_fields
from fastinfogan_kernels.latents import Categorical, Continuous, LatentSpec, Noise

Activation = Literal["none", "relu", "leaky_relu", "sigmoid", "tanh"]


@dataclass(frozen=True)
class BlockSpec:
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
        name: mnist, svhn, celeba, faces, chairs or sprites.
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
        iterations: how long the published run is; for SVHN and CelebA none is published, and for
            sprites it is ours.
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

# Not in the paper. Widths, codes, noise, deviation 1 and lambda are those by which Lin et al. 2020
# (InfoGAN-CR, arXiv 1906.06034, and its code) train InfoGAN on dSprites, after the networks of Kim
# and Mnih 2018 (FactorVAE); nor has their D batch norm. Ours: ReLU and batch norm in G as in the
# paper, D without their spectral norm, the paper's learning rates (theirs: 2e-3 and 1e-3) and its
# batch of 128 (theirs: 64).
SPRITES = Experiment(
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

BASES = {e.name: e for e in (MNIST, SVHN, CELEBA, FACES, CHAIRS, SPRITES)}
