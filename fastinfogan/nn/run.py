"""Running blocks in a row: what is checked, who computes, and what evaluation mode changes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from fastinfogan.errors import InputError
from fastinfogan_kernels.conv_block.autograd import fused_chain, native_chain
from fastinfogan_kernels.conv_block.cpu_epilogue import NATIVE_DTYPES
from fastinfogan_kernels.conv_block.layers import Images, Layer, LayerTensors
from fastinfogan_kernels.conv_block.reference import reference_chain
from fastinfogan_kernels.conv_block.sync_batch_norm import ProcessGroup
from fastinfogan_kernels.runtime.backend import Implementation, choose

ActivationName = Literal["none", "relu", "leaky_relu", "sigmoid", "tanh"]

__all__ = ["ActivationName", "Implementation", "Stage", "run_stages"]


@dataclass(frozen=True)
class Stage:
    """One block of a chain, for input of one shape.

    Attributes:
        layer: what is computed.
        tensors: weight and bias.
        norm: the batch norm that follows, or None.
        out: shape of the output, (C, H, W) or (features,).
    """

    layer: Layer
    tensors: LayerTensors
    norm: nn.BatchNorm1d | nn.BatchNorm2d | None
    out: tuple[int, ...]


def run_stages(
    stages: Sequence[Callable[[tuple[int, ...]], Stage]],
    x: Tensor | Images,
    groups: int,
    impl: Implementation,
    process_group: ProcessGroup = None,
) -> Tensor:
    """Run blocks in a row as one.

    Args:
        stages: each block's description, as a function of its input's shape.
        x: the input, see `Block.forward`.
        groups: equal parts of the batch with statistics of their own.
        impl: who computes.
        process_group: of processes with which batch-norm statistics are shared.

    Raises:
        InputError: rank, channels, dtype, device or batch do not fit, or "triton" cannot run here.
    """
    if isinstance(x, Images):
        batch, device, dtype = x.count, x.data.device, x.dtype
        shape: tuple[int, ...] = (x.data.shape[3], x.data.shape[1], x.data.shape[2])
    else:
        if x.dim() < 2:
            raise InputError(f"a block takes a batch of maps or of rows, not {x.dim()} dimensions")
        batch, device, dtype = x.shape[0], x.device, x.dtype
        shape = tuple(x.shape[1:])
    if batch == 0:
        raise InputError("an empty batch cannot be computed")
    if groups < 1 or batch % groups:
        raise InputError(f"a batch of {batch} does not divide into {groups} groups")
    way = choose(impl, device)
    kernels = way == "triton"
    found = resolve(stages, shape, batch, groups)
    layers, tensors = [stage.layer for stage in found], [stage.tensors for stage in found]
    # torch knows no autocast for "meta" tensors, and is angry if asked.
    autocast = device.type != "meta" and torch.is_autocast_enabled(device.type)
    for t in tensors:
        if t.weight.device != device:
            raise InputError(f"the input is on {device}, the block's weight on {t.weight.device}")
        # Images are computed in the type that they name, by the kernels with weights of any type.
        if dtype != t.weight.dtype and not autocast and not (kernels and isinstance(x, Images)):
            raise InputError(
                f"the input is {dtype}, the block's weight {t.weight.dtype}; convert one, or use "
                "autocast"
            )
    wanted = torch.get_autocast_dtype(device.type) if autocast else dtype
    if kernels and wanted not in (torch.float32, torch.float16, torch.bfloat16):
        raise InputError(f"the kernels compute in fp32, fp16 or bf16, not {wanted}")
    alone = process_group is None and wanted in NATIVE_DTYPES
    if way == "native" and not alone and impl == "native":
        raise InputError(
            "impl='native' computes in fp32, fp16 or bf16 and shares no statistics between ranks; "
            "use impl='auto'"
        )
    _count_batches(found, groups)
    if way == "reference" or (way == "native" and not alone):
        return reference_chain(x, layers, tensors, groups, process_group)
    source = replace(x, dtype=wanted) if isinstance(x, Images) else x.to(wanted)
    with torch.autocast(device.type, enabled=False):
        if kernels:
            return fused_chain(source, layers, tensors, groups, process_group)
        return native_chain(source, layers, tensors, groups)


def describe(
    stages: Sequence[Callable[[tuple[int, ...]], Stage]],
    shape: tuple[int, ...],
    batch: int,
    groups: int,
) -> tuple[list[Layer], list[LayerTensors]]:
    """What blocks in a row compute for a batch of inputs of a shape, as the kernels take it.

    Raises:
        InputError: channels or features do not fit, or batch norm has one value to train on.
    """
    found = resolve(stages, shape, batch, groups)
    return [stage.layer for stage in found], [stage.tensors for stage in found]


def resolve(
    stages: Sequence[Callable[[tuple[int, ...]], Stage]],
    shape: tuple[int, ...],
    batch: int,
    groups: int,
) -> list[Stage]:
    """What each block in a row computes for inputs of a shape, with batch norm's tensors.

    Raises:
        InputError: as `describe`.
    """
    found = []
    for stage_for in stages:
        stage = stage_for(shape)
        found.append(_with_norm(stage, batch // groups))
        shape = stage.out
    for stage in found[:-1]:
        if stage.layer.activation in ("sigmoid", "tanh"):
            raise InputError(f"{stage.layer.activation} can only end a chain")
    return found


def _count_batches(stages: Sequence[Stage], groups: int) -> None:
    """Count the batches that running statistics take in, once nothing is left to refuse."""
    for stage in stages:
        counter = stage.norm.num_batches_tracked if stage.norm is not None else None
        if stage.tensors.running_mean is not None and counter is not None:
            counter.add_(groups)


def _with_norm(stage: Stage, per_group: int) -> Stage:
    """Add batch norm's tensors, or in evaluation mode fold it into weight and bias."""
    norm = stage.norm
    if norm is None:
        return stage
    if isinstance(norm, nn.SyncBatchNorm):
        raise InputError(
            "this block's batch norm has become a SyncBatchNorm, by convert_sync_batchnorm it "
            "seems; a block shares its statistics by fastinfogan.nn.synchronise"
        )
    if not norm.training and norm.running_mean is not None:
        return replace(stage, layer=replace(stage.layer, norm=False), tensors=_folded(stage, norm))
    if norm.momentum is None:
        raise InputError("a block has no cumulative running statistics (momentum None)")
    positions = 1 if len(stage.out) == 1 or stage.layer.shape else stage.out[1] * stage.out[2]
    if per_group * positions < 2:
        raise InputError("batch norm cannot train on one value per channel")
    track = norm.training and norm.track_running_stats
    gamma, beta = norm.weight, norm.bias
    if gamma is None:
        gamma = stage.tensors.weight.new_ones(norm.num_features)
        beta = torch.zeros_like(gamma)
    tensors = stage.tensors._replace(
        gamma=gamma,
        beta=beta,
        running_mean=norm.running_mean if track else None,
        running_var=norm.running_var if track else None,
    )
    return replace(stage, tensors=tensors)


def _folded(stage: Stage, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> LayerTensors:
    weight, bias = stage.tensors.weight, stage.tensors.bias
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    shift = norm.running_mean if bias is None else norm.running_mean - bias
    folded_bias = -shift * scale if norm.bias is None else norm.bias - shift * scale
    along = [1] * weight.dim()
    along[1 if stage.layer.geometry.transposed else 0] = -1
    folded = (weight * scale.view(along)).to(weight.dtype)
    return LayerTensors(folded, folded_bias.to(weight.dtype))
