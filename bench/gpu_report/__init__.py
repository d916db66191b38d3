"""One command that collects everything a GPU is needed for: `python -m bench.gpu_report`.

Each stage is a process of its own with a time limit, and writes each item as it comes: a hang or a
crash costs one item. The most valuable stages come first.
"""

from contextlib import suppress

with suppress(ModuleNotFoundError):
    import triton  # noqa: F401 - kernels that are imported after it can be compiled
