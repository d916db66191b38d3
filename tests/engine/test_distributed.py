"""Several processes that train one run, joined by gloo, against one process that trains it."""

import os
import re
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastinfogan import experiments
from fastinfogan.distributed import Distributed, GradientAllReduce
from fastinfogan.engine import RunDirectory, RunOptions, Schedule, Trainer
from fastinfogan.engine.config import BatchNorm, ComputedIn
from fastinfogan.errors import InputError, TrainingError
from tests.helpers.ranks import run_ranks
from tests.helpers.torchrun import MNIST, torchrun, wait_for_lines, without_torchrun
from tests.helpers.training import made_up_images, make_iteration, narrow_experiment, train_config

BATCH, ITERATIONS = 12, 3
NARROW = replace(narrow_experiment(experiments.get("mnist"), 16), batch_size=BATCH)
SOURCE = made_up_images(NARROW)
CPU = torch.device("cpu")
PRECISIONS: dict[ComputedIn, BatchNorm] = {
    "fp64": "synchronised",
    "bf16": "synchronised",
    "fp16": "per-rank",
}


def trained(
    distributed: Distributed, precision: ComputedIn, batch_norm: BatchNorm
) -> dict[str, Tensor]:
    """The state of the tiny experiment after some iterations."""
    iteration = make_iteration(
        NARROW,
        batch_size=BATCH,
        precision=precision,
        distributed=distributed,
        batch_norm=batch_norm,
    )
    if iteration.loss_scale:
        iteration.loss_scale.state[0] = 64.0
        iteration.restored()
    for step in range(ITERATIONS):
        iteration.run(step)
    return {name: t for kind in iteration.state().values() for name, t in kind.items()}


def train_a_run(rank: int, folder: Path, count: int, until: int) -> Trainer:
    """Train a run in fp64, as one of `count` ranks."""
    config = train_config(SOURCE, batch_size=BATCH, precision="fp64", ranks=count)
    run = RunDirectory(folder / f"run-{count}", NARROW, config, RunOptions(until))
    distributed = Distributed(rank, count)
    trainer = Trainer(run, SOURCE, CPU, distributed=distributed)
    if distributed.is_main:
        run.make()
    trainer.train(until)
    return trainer


def one_of(rank: int, folder: Path, count: int) -> None:
    for precision, norm in PRECISIONS.items():
        found = trained(Distributed(rank, count), precision, norm)
        torch.save(found, folder / f"{precision}-{rank}")
    train_a_run(rank, folder, count, ITERATIONS)


@dataclass(frozen=True)
class Trained:
    """What several ranks left in a folder."""

    folder: Path
    count: int

    def states(self, precision: str) -> list[dict[str, Tensor]]:
        return [torch.load(self.folder / f"{precision}-{rank}") for rank in range(self.count)]


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def by_ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """One start of the processes for all that they train."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(one_of, request.param, folder, request.param)
    return Trained(folder, request.param)


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, tensor in actual.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-8, atol=1e-10, msg=name)


def test_a_batch_gives_the_same_iteration_however_many_ranks_share_it(by_ranks: Trained) -> None:
    """In fp64, where order of summation is no excuse."""
    assert_close(by_ranks.states("fp64")[0], trained(Distributed(), "fp64", "synchronised"))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_all_ranks_have_the_same_weights(by_ranks: Trained, precision: str) -> None:
    """To the last bit, but for statistics per rank."""
    one, *others = by_ranks.states(precision)
    for name, tensor in one.items():
        own = PRECISIONS[precision] == "per-rank" and "running" in name
        assert {torch.equal(tensor, other[name]) for other in others} == {not own}, name
    assert one["tally"].tolist() == [ITERATIONS, 0, 0]


def test_a_run_of_several_ranks_goes_on_with_one(by_ranks: Trained, tmp_path: Path) -> None:
    """In fp64 too: in fp32 each iteration amplifies a difference in rounding tenfold."""
    run = RunDirectory.open(by_ranks.folder / f"run-{by_ranks.count}")
    run.update(replace(run.config, ranks=1), run.options)
    resumed = Trainer(run, SOURCE, CPU)
    resumed.resume()
    assert resumed.step == ITERATIONS
    resumed.train(ITERATIONS + 2)
    alone = train_a_run(0, tmp_path, 1, ITERATIONS + 2).iteration.state()
    for kind, tensors in resumed.iteration.state().items():
        assert_close(tensors, alone[kind])


def shared_troubles(rank: int, folder: Path) -> None:
    """Of two ranks the second has losses that are not finite, and then pictures that are lost."""
    distributed = Distributed(rank, 2)
    iteration = make_iteration(NARROW, batch_size=4, distributed=distributed)
    before = [p.clone() for p in iteration.networks.parameters()]
    for step in range(3):
        iteration.draw(step)
        if rank == 1:
            iteration.networks.d_head[0].layer.bias.data.fill_(float("nan"))
        iteration.run(step)
    with pytest.raises(TrainingError, match="the last 3 iterations"):
        iteration.read()
    if rank == 0:
        after = iteration.networks.parameters()
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    settings = train_config(SOURCE, batch_size=4, ranks=2)
    run = RunDirectory(folder / "run", NARROW, settings, RunOptions(9))
    trainer = Trainer(run, SOURCE, CPU, distributed=distributed)
    if distributed.is_main:
        run.make()
    trainer.loader.seconds_waited, trainer.loader.iterations_per_call = 0.0, 1

    def prepare(step: int, *_: object) -> bool:
        if rank == 1 and step == 2:
            raise InputError("picture 7 is torn")
        return True

    trainer.loader.prepare = prepare  # type: ignore[method-assign]
    with pytest.raises(InputError, match=("another rank lacks", "picture 7 is torn")[rank]):
        trainer.train(9, Schedule())
    assert trainer.step == 2


def test_what_is_wrong_on_one_rank_stops_all_in_order(tmp_path: Path) -> None:
    """Each by its own error, not by a lost process; and rank 0 has saved."""
    run_ranks(shared_troubles, 2, tmp_path)
    assert RunDirectory.open(tmp_path / "run").read_checkpoint().iteration == 2


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_others(digits: str) -> None:
    """With an error; what was saved is whole."""
    launched = torchrun(
        2, *MNIST, "--data", digits, "--iterations", "100000", "--checkpoint-every", "1",
        "--pictures-every", "0", "--out", "run",
    )  # fmt: skip
    wait_for_lines(Path("run"), 3)
    children = Path(f"/proc/{launched.pid}/task/{launched.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    printed, _ = launched.communicate(timeout=120)
    assert launched.returncode != 0
    # In one line, wherever it waited: in batch norm, for the gradients or at the boundary.
    assert re.search(r"^fastinfogan, rank [01]: another rank is gone", printed, re.MULTILINE), (
        printed
    )
    assert RunDirectory.open(Path("run")).read_checkpoint().iteration >= 3


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all(digits: str) -> None:
    """Rank 0 saves and says so, and does not take the run for finished."""
    arguments = ("--data", digits, "--iterations", "100000", "--pictures-every", "0")
    both = without_torchrun(*MNIST, *arguments, "--out", "run")
    wait_for_lines(Path("run"), 2)
    both[1].send_signal(signal.SIGTERM)
    printed = [each.communicate(timeout=60)[0] for each in both]
    assert [each.returncode for each in both] == [143, 143], printed
    done = RunDirectory.open(Path("run")).read_checkpoint().iteration
    assert f"stopped after {done} of 100000 iterations; go on with: fastinfogan train" in printed[0]
    assert printed[1] == ""


def test_what_ranks_cannot_share() -> None:
    with pytest.raises(InputError, match="`batch_size=7` cannot be shared equally by 2 ranks"):
        Distributed(0, 2).rows(7)
    with pytest.raises(InputError, match="2 or more rows for each"):
        Distributed(0, 4).rows(4)
    assert Distributed(2, 3).rows(12) == range(8, 12)


def test_shared_gradients_begin_where_vectors_load_whole() -> None:
    """Of odd sizes and in channels_last, too; none overlaps another."""
    conv = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)
    shapes = [torch.zeros(1), torch.zeros(5, 3), conv, torch.zeros(7, dtype=torch.float64)]
    for given in (shapes[:3], shapes):
        shared = GradientAllReduce(Distributed(0, 2), given, 3)
        for number, (gradient, like) in enumerate(zip(shared._gradients, given, strict=True)):
            assert gradient.data_ptr() % 16 == 0
            assert (gradient.shape, gradient.stride()) == (like.shape, like.stride())
            gradient.fill_(number + 1)
        assert [float(g.unique()) for g in shared._gradients] == [*range(1, len(given) + 1)]
        assert shared._flat.count_nonzero() == sum(g.numel() for g in given)
