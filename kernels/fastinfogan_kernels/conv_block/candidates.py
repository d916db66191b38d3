"""Two ways to compute a product: our kernel, or ATen's convolution with our passes around it.

On large maps cuDNN's convolution may win by more than the passes over memory that it costs. The
launch table says which, per layer and pass; what it does not know goes to our kernel.
"""

from torch import Tensor

from fastinfogan_kernels.conv_block import aten, elementwise, implicit_gemm
from fastinfogan_kernels.conv_block.bn_stats import Backward, Forward
from fastinfogan_kernels.conv_block.deferred import Deferred, Tiles
from fastinfogan_kernels.conv_block.geometry import ConvGeometry
from fastinfogan_kernels.conv_block.implicit_gemm import NOTHING, Epilogue
from fastinfogan_kernels.conv_block.launch_table import choose
from fastinfogan_kernels.conv_block.weight_grad import weight_gradient as our_weight_gradient


def multiply(
    operand: Deferred,
    weight: Tensor,
    gather: ConvGeometry,
    groups: int,
    behind: Epilogue = NOTHING,
    *,
    backward: bool = False,
) -> tuple[Tensor, Tiles | None]:
    """As `implicit_gemm.multiply`, by the candidate that the launch table names."""
    chosen = choose("data_gradient" if backward else "forward", operand.x, weight, gather)
    if chosen.candidate == "gemm" or weight.dim() == 2:
        return implicit_gemm.multiply(
            operand, weight, gather, groups, behind, backward=backward, tile=chosen.tile
        )
    bias, activation, slope, before, tiles, into = behind
    x = operand.materialize(groups)
    if backward:
        into = into if isinstance(into, Backward) else None
        source = x.new_empty((len(x), *gather.source, weight.shape[0 if gather.transposed else 1]))
        dx, _ = aten.gradients(source, x, weight, gather, of_input=True)
        assert dx is not None
        if before is None:
            return dx, None
        return elementwise.act_backward_reduce(dx, before, groups, into=into)
    y = aten.product(x, weight, bias, gather)
    if activation != "none":
        return elementwise.materialize(Deferred(y, None, slope), groups, activation), None
    if not tiles and into is None:
        return y, None
    found = elementwise.tile_statistics(y, y.shape[3], groups)
    if isinstance(into, Forward):
        into.finalize(found, y.numel() // y.shape[3] // groups)
    return y, found


def weight_gradient(
    operand: Deferred, gradient: Deferred, weight: Tensor, gather: ConvGeometry, groups: int
) -> Tensor:
    """As `weight_gradient.weight_gradient`, by the candidate that the launch table names."""
    chosen = choose("weight_gradient", operand.x, weight, gather)
    if chosen.candidate == "gemm" or weight.dim() == 2:
        return our_weight_gradient(operand, gradient, weight, gather, groups, tile=chosen.tile)
    x, dy = operand.materialize(groups), gradient.materialize(groups)
    _, dw = aten.gradients(x, dy, weight, gather, of_weight=True)
    assert dw is not None
    return dw
