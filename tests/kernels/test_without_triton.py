"""Without Triton everything imports, the CPU trains, and Triton by name is refused."""

import os
import subprocess
import sys

import pytest
import torch

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


LATE = """
import os

import torch

import fastinfogan.nn as fnn
from fastinfogan.errors import InputError

os.environ["TRITON_INTERPRET"] = "1"
try:
    fnn.ConvBlock(1, 4, 4, 2, impl="triton")(torch.randn(6, 1, 8, 8))
except InputError as error:
    print(error)
"""


def printed(program: str) -> str:
    """What a process of its own prints, not under the interpreter from its start."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_cpu_where_triton_is_not_installed() -> None:
    assert printed(PROGRAM).startswith("Triton is not installed; pip install triton")


@pytest.mark.skipif(
    bool(torch.version.cuda or torch.version.hip), reason="builds for GPUs import Triton at once"
)
def test_the_interpreter_asked_for_too_late() -> None:
    assert printed(LATE).startswith("set TRITON_INTERPRET=1")
