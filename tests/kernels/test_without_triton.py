"""Where Triton cannot be had: everything imports, the CPU trains, and Triton by name is refused."""

import subprocess
import sys

PROGRAM = """
import sys

sys.modules["triton"] = None  # as if it were not installed

import torch

import fastinfogan.engine
import fastinfogan.nn as fnn
from fastinfogan.errors import InputError
from fastinfogan.optim import Adam
from fastinfogan_kernels.runtime.lang import TRITON_AVAILABLE

assert not TRITON_AVAILABLE
chain = fnn.Chain(fnn.ConvBlock(1, 4, 4, 2), fnn.LinearBlock(4 * 4 * 4, 3)).requires_grad_()
optimizer = Adam(chain.parameters())
for impl in ("auto", "reference"):
    chain.impl = impl
    optimizer.zero_grad()
    chain(torch.randn(6, 1, 8, 8)).square().sum().backward()
    before = [p.clone() for p in chain.parameters()]
    optimizer.step()
    assert not all(map(torch.equal, before, chain.parameters()))
chain.impl = "triton"
try:
    chain(torch.randn(6, 1, 8, 8))
except InputError as error:
    print(error)
"""


def test_a_cpu_without_triton() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Triton is not installed; pip install triton")
