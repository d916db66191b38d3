"""What an iteration costs along each axis: batch, channels, codes and ranks."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from scipy import stats

from bench.counting.iteration import Counts, count
from bench.timing.clock import Run, clock_for
from bench.timing.interleaved import Interleaved
from bench.training import images_for, iteration_for
from fastinfogan import experiments
from fastinfogan.engine.config import ComputedIn
from fastinfogan.engine.execution import choose_execution
from fastinfogan.experiments import BlockSpec, Experiment
from fastinfogan_kernels.latents import Categorical

BATCHES = tuple(2**i for i in range(5, 13))
WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
CODES = (1, 2, 4, 8, 16, 24)  # of ten classes each; with more Q's last layer is another kernel
RANKS = (2, 4, 8, 16, 32, 64)
TIMED_BATCHES = (32, 64, 128, 256, 512)
TIMED_WIDTHS = (0.25, 0.5, 1.0, 2.0)
TIMED_CODES = (1, 4, 16, 24)
ROUNDS = 9
COUNTED = ("launches", "bytes", "flops")
_BUDGET = 60.0  # seconds for an axis


@dataclass(frozen=True)
class Axis:
    """A cost along one size.

    Attributes:
        sizes: batch, width as a part of the paper's, number of codes, or ranks.
        costs: by name, one for each size.
    """

    sizes: tuple[float, ...]
    costs: dict[str, tuple[float, ...]]

    def to_dict(self) -> dict[str, Any]:
        exponents = {name: asdict(exponent(self.sizes, c)) for name, c in self.costs.items()}
        return {**asdict(self), "exponents": exponents}


def widened(experiment: Experiment, width: float) -> Experiment:
    """Multiply every hidden width of the networks."""

    def wide(blocks: tuple[BlockSpec, ...]) -> tuple[BlockSpec, ...]:
        return tuple(replace(b, channels=max(round(b.channels * width), 1)) for b in blocks)

    return replace(
        experiment,
        trunk=wide(experiment.trunk),
        q_head=wide(experiment.q_head),
        generator=(*wide(experiment.generator[:-1]), experiment.generator[-1]),
    )


def coded(experiment: Experiment, codes: int) -> Experiment:
    """Give the experiment so many categorical codes of ten classes."""
    spec = replace(experiment.latents, codes=tuple(Categorical(10) for _ in range(codes)))
    return replace(experiment, latents=spec)


def axes(
    experiment: Experiment,
    batches: Sequence[int] = BATCHES,
    widths: Sequence[float] = WIDTHS,
    codes: Sequence[int] = CODES,
) -> dict[str, tuple[Sequence[float], list[Experiment]]]:
    """Return by axis its sizes, and the experiment at each of them."""
    e = experiment
    return {
        "batch": (batches, [replace(e, batch_size=size) for size in batches]),
        "width": (widths, [widened(e, width) for width in widths]),
        "codes": (codes, [coded(e, number) for number in codes]),
    }


def counted(experiment: Experiment, precision: ComputedIn = "bf16") -> dict[str, Axis]:
    """Count launches, bytes and FLOPs along each axis; exact on any machine."""
    return {
        axis: Axis(tuple(sizes), _costs(count(each, precision) for each in made))
        for axis, (sizes, made) in axes(experiment).items()
    } | {"ranks": _by_ranks(experiment, precision)}


def _costs(counts: Iterable[Counts]) -> dict[str, tuple[float, ...]]:
    found = [asdict(each) for each in counts]
    return {name: tuple(each[name] for each in found) for name in COUNTED}


def _by_ranks(experiment: Experiment, precision: ComputedIn) -> Axis:
    """Count what one rank launches, sends and receives, with the experiment's batch for each."""
    launches, operands, received = [], [], []
    for ranks in RANKS:
        whole = replace(experiment, batch_size=experiment.batch_size * ranks)
        found = count(whole, precision, ranks)
        launches.append(found.launches)
        operands.append(sum(each.bytes for each in found.collectives))
        gathered = [each.bytes for each in found.collectives if each.kind == "all_gather"]
        received.append(sum(gathered) * ranks)
    costs = {"launches": launches, "bytes of operands": operands, "bytes gathered": received}
    return Axis(RANKS, {name: tuple(each) for name, each in costs.items()})


def timed(
    name: str, precision: ComputedIn, device: torch.device, rounds: int = ROUNDS
) -> dict[str, Axis]:
    """Time an iteration along each axis but ranks, all sizes of an axis interleaved."""
    sizes = axes(experiments.get(name), TIMED_BATCHES, TIMED_WIDTHS, TIMED_CODES)
    mode, _ = choose_execution("auto", device)
    per_call = mode.iterations_per_call
    found, steps = {}, iter(range(0, 10**9, per_call))

    def one(each: Experiment) -> Run:
        images = images_for(each, 1024, device)
        execution = mode(iteration_for(each, precision, each.batch_size, images))
        return lambda: execution.run(next(steps), per_call)

    for axis, (along, made) in sizes.items():
        runs = {str(size): one(each) for size, each in zip(along, made, strict=True)}
        interleaved = Interleaved(runs, clock_for(device), steady=True, units=per_call)
        interleaved.time(rounds, _BUDGET)
        times = interleaved.times
        medians = tuple(times.spread(name).median for name in runs)
        interleaved.release()
        found[axis] = Axis(tuple(along), {"seconds": medians})
    return found


@dataclass(frozen=True)
class Exponent:
    """Of a cost c * size^e, which is a straight line of slope e in logarithms.

    Attributes:
        overall: slope of the line through all points.
        margin: half of its 95 % confidence interval; what is no power law shows here.
        last: slope between the two largest sizes, where what is constant matters least.
    """

    overall: float
    margin: float
    last: float


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> Exponent:
    """Fit an exponent to positive costs at three or more rising sizes, by least squares."""
    x, y = ([math.log(value) for value in values] for values in (sizes, costs))
    line = stats.linregress(x, y)
    margin = float(stats.t.ppf(0.975, len(x) - 2) * line.stderr)
    return Exponent(float(line.slope), margin, (y[-1] - y[-2]) / (x[-1] - x[-2]))
