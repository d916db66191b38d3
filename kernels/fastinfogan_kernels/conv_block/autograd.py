"""A chain of blocks as one node of autograd.

Across separate nodes autograd would have to write every dy = A * g + B * y + C out; inside one node
the next kernels form it while loading. A node runs on one of two backends: `triton_backend`, or
`cpu_backend`, which is ATen's convolutions with fused epilogues.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from fastinfogan_kernels.conv_block import cpu_backend, triton_backend
from fastinfogan_kernels.conv_block.image_conv import supports_images
from fastinfogan_kernels.conv_block.layers import ChainInput, Images, Layer, LayerTensors
from fastinfogan_kernels.conv_block.reference import reference_chain
from fastinfogan_kernels.conv_block.sync_batch_norm import ProcessGroup

Backend = Literal["triton", "native"]

_PER_LAYER = len(LayerTensors._fields)


def fused_chain(
    x: Tensor | Images,
    layers: Sequence[Layer],
    tensors: Sequence[LayerTensors],
    groups: int,
    process_group: ProcessGroup = None,
) -> Tensor:
    """Compute a chain by the Triton kernels; arguments and result as of `reference_chain`."""
    if isinstance(x, Images):
        synchronised = layers[0].norm and process_group is not None
        supported = supports_images(x.data.shape[3], layers[0].geometry.window)
        if supported and not synchronised and not x.data.requires_grad:
            chain_input = ChainInput(x.dtype, process_group, x.index, x.scale, x.shift)
            return _apply("triton", x.data, chain_input, layers, tensors, groups)
        x = x.materialize()
    return _apply("triton", _nhwc(x), ChainInput(x.dtype, process_group), layers, tensors, groups)


def native_chain(
    x: Tensor | Images, layers: Sequence[Layer], tensors: Sequence[LayerTensors], groups: int
) -> Tensor:
    """Compute `fused_chain` by ATen's convolutions and fused epilogues; on any device."""
    x = x.materialize() if isinstance(x, Images) else x
    return _apply("native", _nhwc(x), ChainInput(x.dtype), layers, tensors, groups)


def _module(backend: Backend) -> Any:
    return triton_backend if backend == "triton" else cpu_backend


def _nhwc(x: Tensor) -> Tensor:
    """Free for channels_last memory; its gradient is a view as well."""
    return x.permute(0, 2, 3, 1).contiguous() if x.dim() == 4 else x.contiguous()[:, None, None]


def _apply(
    backend: Backend,
    x: Tensor,
    chain_input: ChainInput,
    layers: Sequence[Layer],
    tensors: Sequence[LayerTensors],
    groups: int,
) -> Tensor:
    flat = [t for each in tensors for t in each]
    out: Tensor = _ChainFunction.apply(  # type: ignore[no-untyped-call]
        backend, tuple(layers), groups, chain_input, x, *flat
    )
    if layers[-1].flat and layers[-1].shape is None:
        return out.flatten(1)
    result: Tensor = out.permute(0, 3, 1, 2)
    return result


def _by_layer(flat: Sequence[Any]) -> list[LayerTensors]:
    return [LayerTensors(*flat[i : i + _PER_LAYER]) for i in range(0, len(flat), _PER_LAYER)]


def _first_trained(needs_grad: Sequence[bool]) -> int:
    """Return the first layer that backward reaches.

    Args:
        needs_grad: of the input, and of each layer's tensors in a row.
    """
    trained = [any(each) for each in _by_layer(needs_grad[1:])]
    return 0 if needs_grad[0] or True not in trained else trained.index(True)


class _ChainFunction(torch.autograd.Function):
    """See `triton_backend` and `cpu_backend`. Feature maps are (N, height, width, channels)."""

    @staticmethod
    def forward(
        ctx: Any,
        backend: Backend,
        layers: tuple[Layer, ...],
        groups: int,
        chain_input: ChainInput,
        x: Tensor,
        *flat: Tensor | None,
    ) -> Tensor:
        out: Tensor
        out, saved = _module(backend).forward(x, chain_input, layers, _by_layer(flat), groups)
        # Triton's backward also reads y of the layer before; on the CPU each layer saves its input.
        first = _first_trained(ctx.needs_input_grad[4:])
        unread = max(first - (backend == "triton"), 0) * (len(saved) // len(layers))
        saved[:unread] = [None] * unread
        # Backward reads no running statistics, and others may write them until then.
        parameters = [
            t
            for each in _by_layer(flat)
            for t in each._replace(running_mean=None, running_var=None)
        ]
        ctx.call = backend, layers, groups, replace(chain_input, index=None)
        ctx.dtype = out.dtype
        ctx.save_for_backward(x, chain_input.index, *saved, *parameters)
        # As torch 2.11 compiles this, every tensor of the pass is an output too, and the gradient
        # of a tensor that is two of them reaches the last alone: the first has to be a new one.
        return out.view(out.shape) if torch.compiler.is_compiling() else out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        backend, layers, groups, chain_input = ctx.call
        x, index, *rest = ctx.saved_tensors
        chain_input = replace(chain_input, index=index)
        cut = len(rest) - _PER_LAYER * len(layers)
        saved, flat = rest[:cut], rest[cut:]
        needs_grad = ctx.needs_input_grad[4:]
        if torch.is_grad_enabled():
            gradients = _differentiable_gradients(
                x, chain_input, layers, flat, groups, dout, needs_grad
            )
            return None, None, None, None, *gradients
        dx, gradients = _module(backend).backward(
            x, chain_input, layers, _by_layer(flat), groups, saved,
            dout.to(ctx.dtype).contiguous(), _by_layer(needs_grad[1:]),
            input_gradient=needs_grad[0],
        )  # fmt: skip
        return None, None, None, None, dx, *gradients


def _differentiable_gradients(
    x: Tensor,
    chain_input: ChainInput,
    layers: Sequence[Layer],
    flat: Sequence[Tensor | None],
    groups: int,
    dout: Tensor,
    needs_grad: Sequence[bool],
) -> list[Tensor | None]:
    """Recompute the gradients by the reference, so that they can be differentiated again."""
    dtype = chain_input.dtype
    tensors = [
        t._replace(
            weight=t.weight.to(dtype),
            bias=None if t.bias is None else t.bias.to(dtype),
        )
        for t in _by_layer(flat)
    ]
    # An input that was given as a tensor is images with scale 1 and shift 0.
    start: Tensor | Images = Images(
        x, chain_input.index, chain_input.scale, chain_input.shift, dtype
    )
    if layers[0].flat:
        start = x.flatten(1)
    out = reference_chain(start, layers, tensors, groups, chain_input.process_group)
    out = (out.permute(0, 2, 3, 1) if out.dim() == 4 else out).reshape(dout.shape)
    pairs = list(zip([x, *flat], needs_grad, strict=True))
    inputs = [t for t, need in pairs if need and t is not None]
    found = iter(torch.autograd.grad(out, inputs, dout, create_graph=True, allow_unused=True))
    return [next(found) if need and t is not None else None for t, need in pairs]
