"""What the machine itself can do, measured in the same run: no share is told of a data sheet's."""

import time

import torch

SIDE, ROUNDS = 2048, 12


def gemm_rate(dtype: torch.dtype) -> float:
    """FLOP/s of a square product that fits no cache and fills all threads: the fastest of some."""
    a, b = (torch.randn(SIDE, SIDE).to(dtype) for _ in range(2))
    out = torch.empty(SIDE, SIDE, dtype=dtype)
    rates = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        rates.append(2 * SIDE**3 / (time.perf_counter() - start))
    return max(rates)  # others only ever make it slower
