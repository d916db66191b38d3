"""The forward pass of blocks in a row: input checks, backend selection, folding in evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from fastinfogan.errors import InputError
from fastinfogan_kernels.conv_block.autograd import fused_chain, native_chain
from fastinfogan_kernels.conv_block.layers import Images, Layer, LayerTensors
from fastinfogan_kernels.conv_block.reference import reference_chain
from fastinfogan_kernels.conv_block.sync_batch_norm import ProcessGroup
from fastinfogan_kernels.runtime.launch import KERNEL_DTYPES, Implementation, choose

ActivationName = Literal["none", "relu", "leaky_relu", "sigmoid", "tanh"]

__all__ = [
    "ActivationName",
    "BlockCall",
    "CallFor",
    "Implementation",
    "block_calls",
    "run_blocks",
]


@dataclass(frozen=True)
class BlockCall:
    """What one block computes for inputs of one shape.

    Attributes:
        layer: the computation, as the kernels take it.
        tensors: weight and bias; with batch norm's, once `block_calls` has added them.
        norm: the batch norm that follows, or None.
        out: shape of one output, (C, H, W) or (features,).
    """

    layer: Layer
    tensors: LayerTensors
    norm: nn.BatchNorm1d | nn.BatchNorm2d | None
    out: tuple[int, ...]


CallFor = Callable[[tuple[int, ...]], BlockCall]
"""A block's computation as a function of the shape of one input, (C, H, W) or (features,)."""


def run_blocks(
    blocks: Sequence[CallFor],
    x: Tensor | Images,
    groups: int,
    impl: Implementation,
    process_group: ProcessGroup = None,
) -> Tensor:
    """Run blocks in a row, as one autograd node where the backend can.

    Args:
        blocks: what each computes.
        x: the input, see `Block.forward`.
        groups: equal parts of the batch with separate batch-norm statistics.
        impl: the backend, see `Block`.
        process_group: of the processes that share batch-norm statistics.

    Raises:
        InputError: rank, channels, dtype, device or batch do not fit, or no such backend here.
    """
    if isinstance(x, Images):
        batch, device, dtype = x.count, x.data.device, x.dtype
        shape: tuple[int, ...] = (x.data.shape[3], x.data.shape[1], x.data.shape[2])
    else:
        if x.dim() < 2:
            raise InputError(
                f"a block takes (N, C, H, W) or (N, features), not {x.dim()} dimensions"
            )
        batch, device, dtype = x.shape[0], x.device, x.dtype
        shape = tuple(x.shape[1:])
    if batch == 0:
        raise InputError("an empty batch cannot be computed")
    if groups < 1 or batch % groups:
        raise InputError(f"a batch of {batch} does not divide into {groups} groups")
    backend = choose(impl, device)
    kernels = backend == "triton"
    calls = block_calls(blocks, shape, batch, groups)
    layers, tensors = [call.layer for call in calls], [call.tensors for call in calls]
    # torch raises an error if asked about autocast for "meta" tensors.
    autocast = device.type != "meta" and torch.is_autocast_enabled(device.type)
    for t in tensors:
        if t.weight.device != device:
            raise InputError(f"the input is on {device}, the block's weight on {t.weight.device}")
        # The kernels take `Images` with weights of any dtype.
        if dtype != t.weight.dtype and not autocast and not (kernels and isinstance(x, Images)):
            raise InputError(
                f"the input is {dtype}, the block's weight {t.weight.dtype}; convert one, or use "
                "autocast"
            )
    compute = torch.get_autocast_dtype(device.type) if autocast else dtype
    if kernels and compute not in (torch.float32, torch.float16, torch.bfloat16):
        raise InputError(f"the kernels compute in fp32, fp16 or bf16, not {compute}")
    native = process_group is None and compute in KERNEL_DTYPES
    if backend == "native" and not native and impl == "native":
        raise InputError(
            "impl='native' computes in fp32, fp16 or bf16 and shares no statistics between ranks; "
            "use impl='auto'"
        )
    _count_batches(calls, groups)
    if backend == "reference" or (backend == "native" and not native):
        return reference_chain(x, layers, tensors, groups, process_group)
    source = replace(x, dtype=compute) if isinstance(x, Images) else x.to(compute)
    with torch.autocast(device.type, enabled=False):
        if kernels:
            return fused_chain(source, layers, tensors, groups, process_group)
        return native_chain(source, layers, tensors, groups)


def block_calls(
    blocks: Sequence[CallFor], shape: tuple[int, ...], batch: int, groups: int
) -> list[BlockCall]:
    """Return what each block in a row computes, with batch norm's tensors.

    Args:
        blocks: what each computes.
        shape: of one input of the first.
        batch: inputs, `groups` parts together.
        groups: equal parts of the batch with separate batch-norm statistics.

    Raises:
        InputError: channels or features do not fit, or batch norm has one value to train on.
    """
    calls = []
    for call_for in blocks:
        call = call_for(shape)
        calls.append(_with_norm(call, batch // groups))
        shape = call.out
    for call in calls[:-1]:
        if call.layer.activation in ("sigmoid", "tanh"):
            raise InputError(f"{call.layer.activation} can only end a chain")
    return calls


def _count_batches(calls: Sequence[BlockCall], groups: int) -> None:
    """Update num_batches_tracked, after all checks have passed."""
    for call in calls:
        counter = call.norm.num_batches_tracked if call.norm is not None else None
        if call.tensors.running_mean is not None and counter is not None:
            counter.add_(groups)


def _with_norm(call: BlockCall, per_group: int) -> BlockCall:
    """Add batch norm's tensors, or in evaluation mode fold it into weight and bias."""
    norm = call.norm
    if norm is None:
        return call
    if isinstance(norm, nn.SyncBatchNorm):
        raise InputError(
            "this block's batch norm is a SyncBatchNorm, probably by convert_sync_batchnorm; "
            "use fastinfogan.nn.synchronise, by which blocks share their statistics"
        )
    if not norm.training and norm.running_mean is not None:
        return replace(call, layer=replace(call.layer, norm=False), tensors=_folded(call, norm))
    if norm.momentum is None:
        raise InputError("blocks do not support cumulative running statistics (momentum=None)")
    positions = 1 if len(call.out) == 1 or call.layer.shape else call.out[1] * call.out[2]
    if per_group * positions < 2:
        raise InputError("batch norm cannot train on one value per channel")
    track = norm.training and norm.track_running_stats
    gamma, beta = norm.weight, norm.bias
    if gamma is None:
        gamma = call.tensors.weight.new_ones(norm.num_features)
        beta = torch.zeros_like(gamma)
    tensors = call.tensors._replace(
        gamma=gamma,
        beta=beta,
        running_mean=norm.running_mean if track else None,
        running_var=norm.running_var if track else None,
    )
    return replace(call, tensors=tensors)


def _folded(call: BlockCall, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> LayerTensors:
    weight, bias = call.tensors.weight, call.tensors.bias
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    shift = norm.running_mean if bias is None else norm.running_mean - bias
    folded_bias = -shift * scale if norm.bias is None else norm.bias - shift * scale
    along = [1] * weight.dim()
    along[1 if call.layer.geometry.transposed else 0] = -1
    folded = (weight * scale.view(along)).to(weight.dtype)
    return LayerTensors(folded, folded_bias.to(weight.dtype))
