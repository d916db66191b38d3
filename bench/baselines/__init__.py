"""PyTorch baselines: the same computation as it is usually written, and at its best.

ops: compositions of an operation. blocks: a network in torch.nn. iteration: whole training loops.
"eager" is fp32 in the usual style, "best" bf16 autocast, channels_last and fused Adam, "compiled"
the same under torch.compile, "cudagraphs" that captured into a CUDA graph.
"""

import torch

EAGER, BEST, COMPILED, CUDAGRAPHS = "eager", "best", "compiled", "cudagraphs"


def benchmark_cudnn() -> None:
    """Let cuDNN time its algorithms for each shape, as fast PyTorch code does."""
    torch.backends.cudnn.benchmark = True


def reset_compiled() -> None:
    """Drop what torch.compile has made: it stops compiling one function for many shapes."""
    torch.compiler.reset()
