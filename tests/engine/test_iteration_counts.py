"""What one iteration asks of a GPU: hard budgets, counted from the program on any machine."""

import json
from dataclasses import replace
from functools import cache

import pytest
from torch import Tensor

from bench.counting.__main__ import main
from bench.counting.iteration import Counts, count
from fastinfogan import experiments
from fastinfogan.engine import Iteration
from fastinfogan.engine.config import ComputedIn

counted = cache(count)


@pytest.fixture(params=experiments.EXPERIMENTS)
def counts(request: pytest.FixtureRequest) -> Counts:
    return counted(experiments.get(request.param))


LAUNCHES = {"mnist": 58, "svhn": 62, "celeba": 62, "faces": 53, "chairs": 80, "sprites": 74}
BYTES = {"mnist": 1.15, "svhn": 1.3, "celeba": 1.3, "faces": 1.15, "chairs": 1.2, "sprites": 1.35}
"""Of the minimum: each operand and result of each product once, and Adam's reads and writes."""


def test_launches(counts: Counts) -> None:
    assert counts.launches <= LAUNCHES[counts.experiment]
    assert sum(counts.kernels.values()) == counts.launches
    assert counts.kernels["adam"] == 2
    of_atens = {name for name in counts.kernels if name.startswith("aten::")}
    assert of_atens == {"aten::copy_", "aten::add_"}


def test_bytes_waits_and_allocations(counts: Counts) -> None:
    """The host never waits, and nothing is allocated after the first iteration."""
    assert 1.0 <= counts.bytes / counts.bytes_minimum <= BYTES[counts.experiment]
    assert counts.host_syncs == counts.allocations == 0


@pytest.mark.parametrize(("precision", "more"), [("fp32", 0), ("tf32", 0), ("fp16", 2)])
def test_other_precisions(precision: ComputedIn, more: int) -> None:
    """Those of bf16, by more bytes; in fp16 both steps look for overflows in one more launch."""
    mnist = experiments.get("mnist")
    found, bf16 = count(mnist, precision), counted(mnist)
    assert found.launches == bf16.launches + more
    assert found.kernels.get("overflow", 0) == more
    assert found.flops == bf16.flops
    assert found.bytes > bf16.bytes
    assert found.bytes <= 1.25 * found.bytes_minimum
    assert found.host_syncs == found.allocations == 0


def test_a_wait_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Iteration.g_step

    def waiting(self: Iteration) -> tuple[Tensor, Tensor]:
        found = step(self)
        float(self.non_finite_rows)
        return found

    monkeypatch.setattr(Iteration, "g_step", waiting)
    assert count(experiments.get("mnist")).host_syncs == 1


def test_flops_of_mnist_are_those_of_its_tables() -> None:
    """By hand: multiply-adds of an image forward, twice that and once more where weights learn."""
    trunk = [14 * 14 * 16 * 64, 7 * 7 * 16 * 64 * 128, 6272 * 1024]
    d_head, q_head = 1024, 1024 * 128 + 128 * 14
    generator = [74 * 1024, 1024 * 6272, 7 * 7 * 16 * 128 * 64, 14 * 14 * 16 * 64]
    d_step = sum(generator) + 2 * (3 * sum(trunk) - trunk[0]) + 2 * 3 * d_head + 3 * q_head
    g_step = 3 * sum(generator) - generator[0] + 2 * (sum(trunk) + d_head + q_head)
    assert counted(experiments.get("mnist")).flops == 2 * 128 * (d_step + g_step)


def test_twice_the_batch_is_as_many_launches() -> None:
    mnist = experiments.get("mnist")
    small, large = counted(mnist), count(replace(mnist, batch_size=2 * mnist.batch_size))
    assert small.launches == large.launches
    assert large.flops == 2 * small.flops


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mnist", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["launches"] <= 60
    assert found["precision"] == "bf16"
    assert main(["mnist", "--batch-size", "64"]) == 0
    assert "mnist, batch 64, bf16: one iteration" in capsys.readouterr().out
    assert main(["mnst"]) == 2
