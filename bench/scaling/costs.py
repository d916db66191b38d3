"""What an iteration costs along each axis: batch, channels, codes and ranks."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

import torch

from bench.counting.collectives import collectives, fake_distributed
from bench.counting.iteration import Counts, count
from bench.timing.clock import Run, clock_for
from bench.timing.interleaved import Interleaved
from bench.training import images_for, iteration_for
from fastinfogan import experiments
from fastinfogan.engine.execution import choose_execution
from fastinfogan.engine.precision import ComputedIn
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


def axes(experiment: Experiment) -> dict[str, tuple[tuple[float, ...], list[Experiment]]]:
    """Return by axis its sizes, and the experiment at each of them."""
    e = experiment
    return {
        "batch": (BATCHES, [replace(e, batch_size=size) for size in BATCHES]),
        "width": (WIDTHS, [widened(e, width) for width in WIDTHS]),
        "codes": (CODES, [coded(e, codes) for codes in CODES]),
    }


def counted(experiment: Experiment, precision: ComputedIn = "bf16") -> dict[str, Axis]:
    """Count launches, bytes and FLOPs along each axis; exact on any machine."""
    return {
        axis: Axis(sizes, _costs(count(each, precision) for each in made))
        for axis, (sizes, made) in axes(experiment).items()
    } | {"ranks": _by_ranks(experiment, precision)}


def _costs(counts: Iterable[Counts]) -> dict[str, tuple[float, ...]]:
    found = [asdict(each) for each in counts]
    return {name: tuple(each[name] for each in found) for name in COUNTED}


def _by_ranks(experiment: Experiment, precision: ComputedIn) -> Axis:
    """Count what one process launches, sends and receives, with the experiment's batch for each."""
    launches, operands, received = [], [], []
    for number in RANKS:
        e = replace(experiment, batch_size=experiment.batch_size * number)
        with fake_distributed(number) as distributed:
            launches.append(count(e, precision, distributed).launches)
        messages = collectives(e, precision, number)
        operands.append(sum(each.bytes for each in messages))
        gathered = sum(each.bytes for each in messages if each.kind == "all_gather")
        received.append(gathered * number)
    costs = {"launches": launches, "bytes of operands": operands, "bytes gathered": received}
    return Axis(RANKS, {name: tuple(each) for name, each in costs.items()})


def timed(
    name: str, precision: ComputedIn, device: torch.device, rounds: int = ROUNDS
) -> dict[str, Axis]:
    """Time an iteration along each axis but ranks, all sizes of an axis interleaved."""
    e = experiments.get(name)
    sizes: dict[str, tuple[tuple[float, ...], list[Experiment]]] = {
        "batch": (TIMED_BATCHES, [replace(e, batch_size=size) for size in TIMED_BATCHES]),
        "width": (TIMED_WIDTHS, [widened(e, width) for width in TIMED_WIDTHS]),
        "codes": (TIMED_CODES, [coded(e, codes) for codes in TIMED_CODES]),
    }
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
        medians = tuple(times.spread(str(size)).median for size in along)
        interleaved.release()
        found[axis] = Axis(along, {"seconds": medians})
    return found
