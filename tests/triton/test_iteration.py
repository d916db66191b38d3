"""A whole iteration by the Triton kernels, against the reference."""

from dataclasses import replace

import pytest
import torch

from fastinfogan import experiments
from fastinfogan.engine.config import ComputedIn
from fastinfogan.experiments import Experiment
from tests.helpers.reference import check_iteration
from tests.helpers.training import make_iteration, narrow_experiment

STEP = 5
PRECISIONS: dict[torch.dtype, ComputedIn] = {
    torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16",
}  # fmt: skip


def small(name: str) -> Experiment:
    """Return the experiment at a fraction of its widths; mnist and chairs at one of their size."""
    e = narrow_experiment(experiments.get(name), {"mnist": 16, "svhn": 16}.get(name, 32))
    if name not in ("mnist", "chairs"):
        return e
    side = {"mnist": 16, "chairs": e.height // 2}[name]

    def scaled(length: int) -> int:
        return length * side // e.height

    generator = tuple(
        replace(b, height=scaled(b.height), width=scaled(b.width)) if b.height else b
        for b in e.generator
    )
    return replace(e, height=side, width=side, generator=generator)


def check(name: str, dtype: torch.dtype, device: torch.device) -> None:
    """Run the program by the number on the device, which it increments."""
    rows = 2 if dtype == torch.float32 else 8  # batch norm of two rows magnifies rounding errors
    iteration = make_iteration(
        small(name), batch_size=rows, precision=PRECISIONS[dtype], device=str(device), impl="triton"
    )
    if iteration.loss_scale:
        iteration.loss_scale.state[0] = 64.0
    iteration.counter.fill_(STEP)

    @torch.no_grad()
    def run() -> None:
        with iteration.precision.arithmetic():
            iteration.program()

    if dtype == torch.float32:
        check_iteration(iteration, STEP, run, tolerance=5e-3)
    else:
        # An activation rounded across its kink moves gradients of networks this small by percents.
        check_iteration(iteration, STEP, run, autocast=dtype, tolerance=4e-2)
    assert iteration.counter.item() == STEP + 1
    assert iteration.step_counts.tolist() == [1, 0, 0]
    for adam in (iteration.d_adam, iteration.g_adam):
        for state in adam.state.values():
            assert state["step"] == 1
            assert state["exp_avg"].any()


def test_mnist(dtype: torch.dtype, device: torch.device) -> None:
    check("mnist", dtype, device)


# sprites has the same kinds of blocks, and takes a minute.
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(experiments.EXPERIMENTS) - {"mnist", "sprites"}))
def test_fp32(name: str, device: torch.device) -> None:
    check(name, torch.float32, device)
