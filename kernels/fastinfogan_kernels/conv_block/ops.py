"""The operations of a chain that multiply by a weight: by our kernels, or by ATen's convolution.

On large feature maps cuDNN's convolution may win by more than the passes over memory that it costs.
The launch table says which computes a layer's pass; what it does not list goes to our kernels.

Forward, a block is one launch: the product, its statistics and their finalization. Backward it is
two: the weight gradient, and the data gradient with all that the previous block needs of it.
"""

import torch
from torch import Tensor

from fastinfogan_kernels.conv_block import elementwise, sync_batch_norm
from fastinfogan_kernels.conv_block.bn_stats import (
    BatchNormBackward,
    BatchNormForward,
    merge_tiles,
)
from fastinfogan_kernels.conv_block.deferred import Deferred, TileStatistics
from fastinfogan_kernels.conv_block.implicit_gemm import (
    NO_EPILOGUE,
    Epilogue,
    launch_implicit_gemm,
)
from fastinfogan_kernels.conv_block.launch_table import lookup
from fastinfogan_kernels.conv_block.layers import (
    ConvGeometry,
    Layer,
    LayerTensors,
    Window,
    aten_convolution,
    aten_gradients,
)
from fastinfogan_kernels.conv_block.sync_batch_norm import ProcessGroup
from fastinfogan_kernels.conv_block.weight_grad import launch_weight_gradient
from fastinfogan_kernels.runtime.registry import register


def convolve(
    operand: Deferred,
    weight: Tensor,
    geometry: ConvGeometry,
    groups: int,
    epilogue: Epilogue = NO_EPILOGUE,
    *,
    backward: bool = False,
) -> tuple[Tensor, TileStatistics | None]:
    """Compute what `launch_implicit_gemm` does, by the launch table's candidate."""
    choice = lookup("data_gradient" if backward else "forward", operand.x, weight, geometry)
    if choice.candidate == "gemm" or weight.dim() == 2:
        return launch_implicit_gemm(
            operand, weight, geometry, groups, epilogue, backward=backward, tile=choice.tile
        )
    bias, activation, slope, previous, statistics, stats_out = epilogue
    x = elementwise.write_out(operand, groups)
    if backward:
        stats_out = stats_out if isinstance(stats_out, BatchNormBackward) else None
        channels = weight.shape[0 if geometry.transposed else 1]
        like = x.new_empty((len(x), *geometry.input_size, channels))
        dx, _ = aten_gradients(like, x, weight, geometry, of_input=True)
        assert dx is not None
        if previous is None:
            return dx, None
        return elementwise.launch_act_backward_reduce(dx, previous, groups, stats_out=stats_out)
    y = aten_convolution(x, weight, bias, geometry)
    if activation != "none":
        deferred = Deferred(y, None, slope)
        return elementwise.launch_materialize(deferred, groups, activation), None
    if not statistics and stats_out is None:
        return y, None
    tiles = elementwise.launch_tile_statistics(y, y.shape[3], groups)
    if isinstance(stats_out, BatchNormForward):
        stats_out.finalize(tiles, y.numel() // y.shape[3] // groups)
    return y, tiles


def convolve_weight_gradient(
    operand: Deferred, gradient: Deferred, weight: Tensor, geometry: ConvGeometry, groups: int
) -> Tensor:
    """Compute what `launch_weight_gradient` does, by the launch table's candidate."""
    choice = lookup("weight_gradient", operand.x, weight, geometry)
    if choice.candidate == "gemm" or weight.dim() == 2:
        return launch_weight_gradient(operand, gradient, weight, geometry, groups, tile=choice.tile)
    x, dy = (elementwise.write_out(each, groups) for each in (operand, gradient))
    _, dw = aten_gradients(x, dy, weight, geometry, of_weight=True)
    assert dw is not None
    return dw


@register("norm_block", mutates_args=("running_mean", "running_var"))
def norm_block(
    x: Tensor, x_params: Tensor | None, x_slope: float, weight: Tensor, bias: Tensor | None,
    gamma: Tensor, beta: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
    window: list[int], transposed: bool, groups: int, eps: float, momentum: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return a block's y, and batch norm's params and rstd."""
    norm = BatchNormForward.allocate(gamma, beta, running_mean, running_var, groups, eps, momentum)
    y, _ = convolve(
        Deferred(x, x_params, x_slope), weight, _geometry(window, transposed), groups,
        Epilogue(bias, stats_out=norm),
    )  # fmt: skip
    return y, norm.params, norm.rstd


def sync_norm_block(
    operand: Deferred, t: LayerTensors, layer: Layer, groups: int, process_group: ProcessGroup
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `norm_block` with the statistics of all ranks' batches; torch.compile stops here."""
    assert t.gamma is not None
    assert t.beta is not None
    with torch.cuda.device_of(operand.x):  # type: ignore[no-untyped-call]
        y, tiles = convolve(
            operand, t.weight, layer.geometry, groups, Epilogue(t.bias, statistics=True)
        )
        assert tiles is not None
        count = y.numel() // t.gamma.shape[0] // groups
        tiles = merge_tiles(tiles, count)
        tiles = tiles._replace(data=sync_batch_norm.all_gather_tiles(tiles.data, process_group))
        norm = BatchNormForward.allocate(*t[2:], groups, layer.eps, layer.momentum)  # type: ignore[arg-type]
        norm.finalize(tiles, count * sync_batch_norm.world_size(process_group))
    return y, norm.params, norm.rstd


@register("plain_block")
def plain_block(
    x: Tensor, x_params: Tensor | None, x_slope: float, weight: Tensor, bias: Tensor | None,
    window: list[int], transposed: bool, groups: int, activation: str, slope: float,
) -> Tensor:  # fmt: skip
    """Return act(product + bias) of a block without batch norm."""
    return convolve(
        Deferred(x, x_params, x_slope), weight, _geometry(window, transposed), groups,
        Epilogue(bias, activation, slope),
    )[0]  # fmt: skip


@register("weight_gradient")
def weight_gradient(
    x: Tensor, x_params: Tensor | None, x_slope: float, g: Tensor, y: Tensor | None,
    coefficients: Tensor | None, weight: Tensor, window: list[int], transposed: bool,
    groups: int,
) -> Tensor:  # fmt: skip
    """Return the gradient of a layer's weight."""
    return convolve_weight_gradient(
        Deferred(x, x_params, x_slope), Deferred(g, coefficients, 1.0, y), weight,
        _geometry(window, transposed), groups,
    )  # fmt: skip


@register("data_gradient")
def data_gradient(
    g: Tensor, y: Tensor | None, coefficients: Tensor | None, weight: Tensor,
    previous: Tensor | None, previous_params: Tensor | None, previous_slope: float,
    previous_gamma: Tensor | None, previous_rstd: Tensor | None, previous_bias: Tensor | None,
    window: list[int], transposed: bool, groups: int,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """Return the gradient of a layer's input.

    With a previous block it is the gradient by that block's z, in front of the activation, and the
    list holds what `act_backward_reduce` returns for that block; without one the list is empty.
    """
    gradient = Deferred(g, coefficients, 1.0, y)
    geometry = _geometry(window, transposed)
    if previous is None:
        return convolve(gradient, weight, geometry, groups, backward=True)[0], []
    of_previous = Deferred(previous, previous_params, previous_slope)
    stats_out = BatchNormBackward.of_block(
        previous_gamma, previous_params, previous_rstd, previous_bias
    )
    tiles: TileStatistics | None
    if of_previous.per_pixel:
        # With parameters of each pixel the sums run over images alone, across a product's tiles.
        dx, _ = convolve(gradient, weight, geometry, groups, backward=True)
        dx, tiles = elementwise.launch_act_backward_reduce(
            dx, of_previous, groups, stats_out=stats_out
        )
    else:
        epilogue = Epilogue(previous=of_previous, statistics=True, stats_out=stats_out)
        dx, tiles = convolve(gradient, weight, geometry, groups, epilogue, backward=True)
        assert tiles is not None
    return dx, [tiles.data] if stats_out is None else stats_out.results


def sync_norm_gradient(
    sums: Tensor, count: int, gamma: Tensor, params: Tensor, rstd: Tensor,
    process_group: ProcessGroup,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return dy's coefficients by all ranks' batches; dgamma and dbeta by this rank's."""
    local, of_all = (BatchNormBackward.of_norm(gamma, params, rstd) for _ in range(2))
    groups, tiles, _, columns = sums.shape
    parts = sums.view(groups, tiles, 2, columns // len(gamma), len(gamma))
    sums = parts.sum((1, 3)).unsqueeze(1)  # all that other ranks need to know
    with torch.cuda.device_of(sums):  # type: ignore[no-untyped-call]
        local.finalize(sums, count)
        of_all.finalize(
            sync_batch_norm.all_gather_tiles(sums, process_group),
            count * sync_batch_norm.world_size(process_group),
        )
    return of_all.results[0], local.results[1], local.results[2]


def _geometry(window: list[int], transposed: bool) -> ConvGeometry:
    return ConvGeometry(Window(*window), transposed)
