"""Single operations as compositions of PyTorch's, on any device and in any floating dtype."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastinfogan_kernels.conv_block.layers import ConvGeometry
from fastinfogan_kernels.latents import LatentSpec

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


class Codes(NamedTuple):
    """Noise and code of a batch.

    Attributes:
        rows: (B, input_width), G's input.
        classes: int64 (B, categorical codes).
        continuous: (B, continuous codes).
    """

    rows: Tensor
    classes: Tensor
    continuous: Tensor


def wide(t: Tensor) -> Tensor:
    """Convert to fp32, unless it is fp64."""
    return t.to(torch.promote_types(t.dtype, torch.float32))


def log_likelihoods(
    output: Tensor, classes: Tensor, continuous: Tensor, spec: LatentSpec
) -> Tensor:
    """Compose cross entropies and one Gaussian density of all continuous codes, as is usual.

    Returns:
        (codes,), means over the batch, in nats.
    """
    output = wide(output)
    values = [
        -F.cross_entropy(output[:, place], classes[:, i])
        for i, place in enumerate(spec.logit_slices)
    ]
    if spec.continuous:
        deviations = _deviations(output[:, spec.deviation_slice], spec)
        distance = (continuous - output[:, spec.mean_slice]) / deviations
        density = -0.5 * distance.square() - deviations.log() - _HALF_LOG_2PI
        values += density.mean(0).unbind()
    return torch.stack(values)


def _deviations(raw: Tensor, spec: LatentSpec) -> Tensor:
    kinds = {(code.deviation, code.clip) for code in spec.continuous}
    if {kind for kind, _ in kinds} == {"fixed"}:
        return torch.ones_like(raw)
    if {kind for kind, _ in kinds} == {"learned"}:
        return raw.exp()
    columns = []
    for i, code in enumerate(spec.continuous):
        one = torch.ones_like(raw[:, i]) if code.deviation == "fixed" else raw[:, i].exp()
        columns.append(one.clamp(*code.clip) if code.deviation == "clipped" else one)
    return torch.stack(columns, 1)


def losses(logits: Tensor, targets: Sequence[int]) -> Tensor:
    """Compute each group's adversarial loss, (groups,): softplus(-x) for real images."""
    parts = wide(logits).view(-1).chunk(len(targets))
    return torch.stack(
        [F.softplus(-x if real else x).mean() for x, real in zip(parts, targets, strict=True)]
    )


def gradient_of(values: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(values.sum(), leaves)


def draw_codes(
    spec: LatentSpec, rows: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> Codes:
    """Draw noise and code by torch's own generator, on the device."""
    noise = torch.randn if spec.noise.prior == "normal" else torch.rand
    parts = [noise((rows, spec.noise.size), device=device)]
    if spec.noise.prior == "uniform":
        parts[0] = parts[0] * 2 - 1
    classes = [torch.randint(code.classes, (rows,), device=device) for code in spec.categorical]
    parts += [
        F.one_hot(drawn, code.classes)
        for drawn, code in zip(classes, spec.categorical, strict=True)
    ]
    continuous = torch.rand((rows, len(spec.continuous)), device=device) * 2 - 1
    none = torch.empty((rows, 0), dtype=torch.int64, device=device)
    labels = torch.stack(classes, 1) if classes else none
    return Codes(torch.cat([*parts, continuous], 1).to(dtype), labels, continuous)


def scaled(images: Tensor, index: Tensor, image_range: tuple[float, float]) -> Tensor:
    """Gather and scale images of a uint8 set, (B, height, width, channels) in fp32."""
    low, high = image_range
    chosen = images[index].float().div_(255.0)
    return chosen if (low, high) == (0.0, 1.0) else chosen.mul_(high - low).add_(low)


def moved(images: Tensor, matrices: Tensor) -> Tensor:
    """Resample images (B, C, H, W) by (B, 2, 3), in the images' dtype."""
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", align_corners=False)


def random_matrices(rows: int, device: torch.device) -> Tensor:
    """Draw small random rotations, shears, scalings and shifts, (rows, 2, 3)."""
    u = torch.rand((rows, 6), device=device) * 2 - 1
    angle, shear = u[:, 0] * math.radians(10.0), u[:, 1] * 0.1
    x, y = (u[:, 2] * 0.1).exp(), (u[:, 3] * 0.1).exp()
    cos, sin = angle.cos(), angle.sin()
    rows_of = [
        torch.stack([x * cos, y * (shear * cos - sin), u[:, 4] / 7], 1),
        torch.stack([x * sin, y * (shear * sin + cos), u[:, 5] / 7], 1),
    ]
    return torch.stack(rows_of, 1)


def norm_activation(
    y: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor, groups: int, slope: float
) -> Tensor:
    """Batch-normalise and activate (N, C, H, W) by groups of the batch, as in training."""
    normal = [F.batch_norm(x, mean, var, gamma, beta, training=True) for x in y.chunk(groups)]
    return F.leaky_relu(torch.cat(normal) if groups > 1 else normal[0], slope)


class Product:
    """A layer's product and both gradients, on (N, C, H, W) of any memory format.

    Args:
        geometry: of the layer.
    """

    def __init__(self, geometry: ConvGeometry) -> None:
        w = geometry.window
        self._flat, self._transposed = geometry.flat, geometry.transposed
        self._stride = [w.stride] * 2
        # torch knows symmetric padding alone: "SAME" of an odd total pads, or cuts, one behind.
        self._behind = w.pad_after - w.pad_before
        self._pad = [w.pad_before] * 2
        self._size = geometry.output_size

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self._flat:
            return F.linear(x, weight, bias)
        if self._transposed:
            y = F.conv_transpose2d(x, weight, bias, self._stride, self._pad)
            return y[..., : self._size[0], : self._size[1]]
        return F.conv2d(self._padded(x), weight, bias, self._stride, self._pad)

    def input_gradient(self, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Compute the gradient by the input; of x only the shape counts."""
        if self._flat:
            return dy @ weight
        return self._gradients(dy, x, weight, (True, False))[0][..., : x.shape[2], : x.shape[3]]

    def weight_gradient(self, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Compute the gradient by the weight; of it only the shape counts."""
        if self._flat:
            return dy.t() @ x
        return self._gradients(dy, x, weight, (False, True))[1]

    def _gradients(
        self, dy: Tensor, x: Tensor, weight: Tensor, needed: tuple[bool, bool]
    ) -> tuple[Tensor, Tensor]:
        x = x if self._transposed else self._padded(x)
        dy = self._padded(dy) if self._transposed else dy
        dx, dw, _ = torch.ops.aten.convolution_backward(
            dy, x, weight, None, self._stride, self._pad, [1, 1], self._transposed, [0, 0], 1,
            [*needed, False],
        )  # fmt: skip
        return dx, dw

    def _padded(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, self._behind) * 2) if self._behind else x
