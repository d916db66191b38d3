"""One MNIST iteration at batch 128: the product against PyTorch, as usual and at its best."""

import statistics
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from ceilings import gemm_rate
from pairs import Interleaved, Pair
from peers import BestLoop, UsualLoop

from fastinfogan import experiments
from fastinfogan.data import Source, open_source
from fastinfogan.engine import Iteration, TrainingSettings, choose_precision
from fastinfogan.engine.counts import count
from fastinfogan.engine.environment import cpu_model
from fastinfogan.engine.precision import ComputedIn
from fastinfogan.networks import InfoGAN

AIM, AIM_OF_BEST = 0.40, 0.80  # of the peers' times, on a CPU that multiplies bf16
ROUNDS = 12
CPU = torch.device("cpu")


def make_both(
    precision: ComputedIn, peer: Callable[[TrainingSettings, Source], UsualLoop] = UsualLoop
) -> tuple[Iteration, UsualLoop]:
    experiment = experiments.get("mnist")
    source = open_source(None, experiment)
    settings = TrainingSettings(
        seed=1,
        batch_size=experiment.batch_size,
        precision=precision,
        augmentation="none",
        information="maximise",
        data=None,
        data_fingerprint=source.fingerprint,
    )
    networks = InfoGAN(experiment, settings.seed)
    ours = Iteration(experiment, settings, networks, torch.from_numpy(source.images))
    return ours, peer(settings, source)


def check_parity(ours: Iteration, loop: UsualLoop) -> None:
    """Losses of the first iteration must agree before anything is timed."""
    expected = [loss.item() for loss in loop.run(0)]
    ours.run(0)
    found = ours.read()
    tolerance = 0.02 if ours.settings.precision == "bf16" else 1e-3
    np.testing.assert_allclose([found["d_loss"], found["g_loss"]], expected, atol=tolerance)


@pytest.mark.parametrize("precision", ["auto", "fp32"])
@pytest.mark.benchmark(group="iteration")
def test_mnist_iteration(benchmark: Any, report: list[str], precision: str) -> None:  # noqa: ANN401
    chosen, why = choose_precision(precision, CPU)
    if precision == "auto" and chosen.name == "fp32":
        report.append(f"mnist, batch 128, bf16: not measured, {why}")
        pytest.skip(why)
    ours, loop = make_both(chosen.name)
    check_parity(ours, loop)
    ratio = measure(benchmark, ours, loop)
    report.append(f"mnist, batch 128, {chosen.name} ({why}): {told(ratio)} reference's fp32 time")
    share = rate_of(ours, ratio) / peak(ours)
    benchmark.extra_info["share of the GEMM rate"] = share
    report.append(f"mnist, batch 128, {chosen.name}: {share:.2f} of the measured GEMM rate")
    if precision == "auto" and ratio.ratio > AIM:
        warnings.warn(f"{ratio.ratio:.3f} of the reference's; the aim is {AIM}", stacklevel=1)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.benchmark(group="iteration")
def test_mnist_iteration_against_pytorch_at_its_best(
    benchmark: Any,  # noqa: ANN401
    report: list[str],
    compiled: bool,
) -> None:
    chosen, why = choose_precision("auto", CPU)
    if chosen.name == "fp32":
        pytest.skip(why)
    ours, loop = make_both(chosen.name, partial(BestLoop, compiled=compiled))
    check_parity(ours, loop)
    ratio = measure(benchmark, ours, loop)
    how = "torch.compile, " if compiled else ""
    report.append(
        f"mnist, batch 128, {chosen.name}: {told(ratio)} time of PyTorch with {how}bf16 autocast, "
        "channels_last, fused Adam"
    )
    if ratio.ratio > AIM_OF_BEST:
        warnings.warn(f"{ratio.ratio:.3f} of it; the aim is {AIM_OF_BEST}", stacklevel=1)


def rate_of(ours: Iteration, times: Pair) -> float:
    """FLOP/s of the products of an iteration, by its median time."""
    precision = ours.settings.precision
    return count(ours.experiment, precision).flops / statistics.median(times.ours)


def peak(ours: Iteration) -> float:
    """FLOP/s of a large product in the iteration's number format."""
    return gemm_rate(ours.precision.computed)


def measure(benchmark: Any, ours: Iteration, loop: UsualLoop) -> Pair:  # noqa: ANN401
    """Time both turn by turn."""
    step = iter(range(1, 10_000))
    pair = Interleaved(lambda: ours.run(next(step)), lambda: loop.run(next(step)))
    for _ in range(2):  # the first rounds pay for what is set up once
        pair()
    pair.times.clear()
    benchmark.pedantic(pair, rounds=ROUNDS)
    times = pair.times
    benchmark.extra_info |= {
        "ours": times.ours,
        "peer": times.peer,
        "ratio": times.ratio,
        "quartiles": list(times.quartiles),
        "cpu": cpu_model(),
        "precision": ours.settings.precision,
    }
    return times


def told(times: Pair) -> str:
    low, high = times.quartiles
    return (
        f"{times.ratio:.3f} (quartiles {low:.3f} to {high:.3f}, {len(times.ours)} rounds, "
        f"{cpu_model()}, {torch.get_num_threads()} threads) of the"
    )
