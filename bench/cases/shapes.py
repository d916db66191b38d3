"""The experiments' layers, as kernels see them, found without making a weight."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fastinfogan.engine.config import ComputedIn, choose_precision
from fastinfogan.experiments import Experiment
from fastinfogan.networks import InfoGAN
from fastinfogan_kernels.conv_block.layers import Layer

_ON_A_CPU = {"chairs": 16}
"""Batches on a CPU, if not the experiment's own: 673 GFLOP at 128 are some seconds."""


@dataclass(frozen=True)
class LayerShape:
    """A layer of an experiment's trunk or generator.

    Attributes:
        network: "trunk" or "generator".
        number: within it, from 1.
        layer: what it computes.
        images: of its input: twice the batch in the trunk, real and generated ones.
        groups: of batch norm's statistics.
        source: (height, width, channels) of its input; 1x1 for rows.
        result: of its product.
        weight: shape.
    """

    network: str
    number: int
    layer: Layer
    images: int
    groups: int
    source: tuple[int, int, int]
    result: tuple[int, int, int]
    weight: tuple[int, ...]

    @property
    def flops(self) -> int:
        """FLOPs of its product, forward or by one gradient."""
        w = self.layer.geometry.window
        return 2 * self.images * w.rows * w.columns * math.prod(self.weight)

    @property
    def values(self) -> int:
        activations = math.prod(self.source) + math.prod(self.result)
        return self.images * activations + math.prod(self.weight)

    @property
    def title(self) -> str:
        """A title such as "conv 14x14x64 to 7x7x128"."""
        geometry = self.layer.geometry
        kind = "linear" if geometry.flat else "upconv" if geometry.transposed else "conv"
        shapes = [
            "x".join(map(str, s if max(s[:2]) > 1 else s[2:])) for s in (self.source, self.result)
        ]
        return f"{kind} {' to '.join(shapes)}"


def layer_shapes(experiment: Experiment, batch: int) -> Iterator[LayerShape]:
    """Yield the layers of the trunk in the D step, and of the generator."""
    e = experiment
    with torch.device("meta"):
        networks = InfoGAN(e)
    for name, shape, images, groups in (
        ("trunk", (e.channels, e.height, e.width), 2 * batch, 2),
        ("generator", (e.latents.input_width,), batch, 1),
    ):
        before: tuple[int, ...] = shape
        stages = getattr(networks, name).calls(shape, images, groups)
        for number, stage in enumerate(stages, 1):
            weight = tuple(stage.tensors.weight.shape)
            if stage.layer.flat:
                source, result = (1, 1, math.prod(before)), (1, 1, weight[0])
            else:
                source = (*before[1:], before[0])
                result = (*stage.out[1:], stage.out[0])
            yield LayerShape(name, number, stage.layer, images, groups, source, result, weight)
            before = stage.out


def batch_on(device: torch.device, name: str) -> int:
    """Return the images in a step of cases that run a whole experiment's layers."""
    return _ON_A_CPU.get(name, 128) if device.type == "cpu" else 128


def chosen_precisions(
    device: torch.device, names: tuple[str, ...] = ("auto", "fp32")
) -> list[ComputedIn]:
    """Resolve names of precisions on a device, each result once."""
    found = [choose_precision(name, device)[0].name for name in names]  # type: ignore[arg-type]
    return list(dict.fromkeys(found))
