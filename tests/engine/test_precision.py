"""How precisions multiply, and what the loss scale of fp16 does."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor

from fastinfogan.engine.config import FP32, TF32, ComputedIn, choose_precision
from fastinfogan.errors import InputError
from fastinfogan.experiments import Experiment
from fastinfogan_kernels.adam.loss_scale import FIRST
from fastinfogan_kernels.runtime.launch import recording
from fastinfogan_kernels.runtime.machine import precision
from tests.helpers.training import make_iteration, watch_gradients

CPU = torch.device("cpu")
LEARNED = 40
"""Iterations of the tiny experiment in which fp16's scale is found."""


def d_gradients(tiny: Experiment, precision: ComputedIn, scale: float = 1.0) -> list[Tensor]:
    """Of the first D step, divided by the scale."""
    iteration = make_iteration(tiny, precision=precision)
    if iteration.loss_scale:
        iteration.loss_scale.state[0] = scale
        iteration.restored()
    found: list[Tensor] = []

    def keep(step: str, gradients: Sequence[Tensor]) -> None:
        if step == "D":
            found.extend(g.float() / scale for g in gradients)

    watch_gradients(iteration, keep)
    iteration.run(0)
    assert iteration.read()["skipped"] == 0
    return found


def test_the_gradients_of_fp16_are_those_of_fp32_times_the_scale(tiny: Experiment) -> None:
    """Nearer than bf16's, whose mantissa is shorter; a power of two more changes no gradient."""
    exact, fp16, more = (
        d_gradients(tiny, "fp32"), d_gradients(tiny, "fp16", 64.0), d_gradients(tiny, "fp16", 512.0)
    )  # fmt: skip
    bf16 = d_gradients(tiny, "bf16")
    for true, actual, scaled, rough in zip(exact, fp16, more, bf16, strict=True):
        assert (actual - scaled).norm() <= 2e-3 * actual.norm() + 1e-9
        assert (actual - true).norm() <= 0.7 * (rough - true).norm() + 1e-9


def test_the_scale_falls_until_gradients_fit_and_skipped_iterations_change_no_weight(
    tiny: Experiment,
) -> None:
    iteration = make_iteration(tiny, precision="fp16")
    scale = iteration.loss_scale
    scale.state[0] = 2.0**24
    iteration.restored()
    before = [p.clone() for p in iteration.networks.parameters()]
    iteration.run(0)
    assert scale.state.tolist() == [2.0**23, 0.0]
    torch.testing.assert_close(scale.weights, scale.base * 2.0**23)
    assert all(
        torch.equal(a, b) for a, b in zip(before, iteration.networks.parameters(), strict=True)
    )
    for step in range(1, LEARNED):
        iteration.run(step)
    read = iteration.read()
    assert 3 < read["skipped"] < LEARNED  # more in a row than may be skipped for another reason
    assert scale.state[0].item() == 2.0 ** (24 - read["skipped"])


def test_the_loss_scale_is_a_part_of_the_state(tiny: Experiment) -> None:
    state = make_iteration(tiny, precision="fp16").state()["optimizer"]
    assert state["loss_scale"].tolist() == [FIRST, 0.0]
    assert "loss_scale" not in make_iteration(tiny).state()["optimizer"]


def test_products_are_rounded_to_tf32_where_that_is_asked_for_and_nowhere_else(
    tiny: Experiment,
) -> None:
    before = torch.get_float32_matmul_precision()
    for asked, expected in ((TF32, "tf32"), (FP32, "ieee")):
        with asked.arithmetic():
            assert precision(torch.float32) == expected
            assert torch.backends.cudnn.allow_tf32 == (expected == "tf32")
        assert torch.get_float32_matmul_precision() == before
    for name, expected in (("tf32", "tf32"), ("fp32", "ieee")):
        with recording() as launches, torch.device("meta"):
            iteration = make_iteration(tiny, precision=name, device="meta")  # type: ignore[arg-type]
            iteration.run(0)
        asked_of = {
            each.parameters["PRECISION"] for each in launches if "PRECISION" in each.parameters
        }
        assert asked_of == {expected}


def torchs_settings() -> list[object]:
    b: Any = torch.backends
    found: list[object] = []
    for read in (torch.get_float32_matmul_precision, lambda: b.cudnn.allow_tf32):
        try:
            found.append(read())
        except RuntimeError:
            found.append("mixed")
    where = (b, b.cuda.matmul, b.cudnn, b.cudnn.conv, b.cudnn.rnn, b.mkldnn.matmul, b.mkldnn.conv)
    return found + [each.fp32_precision for each in where]


@pytest.mark.parametrize("way", ["by name", "everywhere", "of one backend"])
def test_how_the_process_multiplies_is_put_back(way: str) -> None:
    """However it was set, by torch's old names or its new switches, and after an error too."""
    b: Any = torch.backends
    where, name, asked = {
        "by name": (None, "", "medium"),
        "everywhere": (b, "fp32_precision", "tf32"),
        "of one backend": (b.cuda.matmul, "fp32_precision", "tf32"),
    }[way]
    before = torchs_settings()
    if where is None:
        torch.set_float32_matmul_precision(asked)
    else:
        setattr(where, name, asked)
    try:
        changed = torchs_settings()
        assert changed != before
        for chosen, expected in ((FP32, "ieee"), (TF32, "tf32")):
            with suppress(KeyError), chosen.arithmetic():
                assert precision(torch.float32) == expected
                assert b.cuda.matmul.allow_tf32 == b.cudnn.allow_tf32 == (expected == "tf32")
                assert b.mkldnn.matmul.fp32_precision == expected
                raise KeyError
            assert torchs_settings() == changed
    finally:
        b.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
        for each in (b.cuda.matmul, b.mkldnn.matmul, b.mkldnn.conv):
            each.fp32_precision = "none"
        b.cudnn.allow_tf32 = True
    assert torchs_settings() == before


def test_precisions_that_a_cpu_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="precision='tf32'`: this cpu has no TF32"):
        choose_precision("tf32", CPU)
    with pytest.raises(InputError, match="there are auto, fp32, tf32, bf16, fp16"):
        choose_precision("fp8", CPU)  # type: ignore[arg-type]
    monkeypatch.setattr("fastinfogan.engine.config.cpu_multiplies", lambda name: None)
    assert choose_precision("auto", CPU)[0] is FP32
    for name in ("bf16", "fp16"):
        chosen, why = choose_precision(name, CPU)  # type: ignore[arg-type]
        assert chosen.name == name
        assert "emulates" in why
