"""What ours is compared with: the same in PyTorch, as it is usually written and at its best.

ops: compositions of an operation. blocks: a network in torch.nn. iteration: whole training loops.
"eager" is fp32 in the usual style, "best" bf16 autocast, channels_last and fused Adam, "compiled"
the same under torch.compile, "cudagraphs" that captured into a CUDA graph.
"""

import torch

EAGER, BEST, COMPILED, CUDAGRAPHS = "eager", "best", "compiled", "cudagraphs"


def let_cudnn_choose() -> None:
    """Have cuDNN time its algorithms for each shape, as whoever wants speed has it do."""
    torch.backends.cudnn.benchmark = True


def forget_compiled() -> None:
    """Drop what torch.compile has made: of many shapes of one function it would soon make none."""
    torch.compiler.reset()
