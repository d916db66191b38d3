"""Two processes, joined by gloo, against one with the batches of both; fp64, the reference path."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastinfogan.nn import Chain, ConvBlock, LinearBlock, fuse, synchronise
from tests.helpers.compare import assert_same
from tests.helpers.ranks import run_ranks

RANKS = 2
Report = dict[str, Tensor]
Distributed = list[dict[tuple[str, str], Report]]


def model(kind: str) -> nn.Module:
    torch.manual_seed(4)
    if kind == "chain":
        made: nn.Module = Chain(
            ConvBlock(2, 4, 4, 2), ConvBlock(4, 6, 3, slope=0.2), LinearBlock(6 * 4 * 4, 3)
        )
        made.requires_grad_()
    else:
        made = nn.Sequential(
            nn.Conv2d(2, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.LeakyReLU(0.1),
            nn.ConvTranspose2d(4, 3, 4, 2, 1), nn.BatchNorm2d(3, momentum=0.3), nn.ReLU(),
            nn.Flatten(), nn.Linear(3 * 8 * 8, 3), nn.BatchNorm1d(3),
        )  # fmt: skip
        fuse(made)
    return made.double()


def batch(step: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(10 + step)
    # The halves differ, so that statistics of one's own are seen to be wrong.
    halves = [
        torch.randn(4, 2, 8, 8, generator=source, dtype=torch.float64) * s + s for s in (1, 3)
    ]
    return torch.cat(halves)


def loss(out: Tensor) -> Tensor:
    """A mean over images, of which each rank has a half."""
    return (out.square() * torch.arange(1, 4)).sum(1).mean() + out.sin().sum(1).mean()


def state(module: nn.Module) -> Report:
    found = {k: t.detach().clone() for k, t in module.state_dict().items()}
    return found | {
        f"{k}.grad": p.grad.clone() for k, p in module.named_parameters() if p.grad is not None
    }


def one_step(kind: str, rank: int) -> Report:
    """Shared statistics, each rank's gradients averaged by hand."""
    module = synchronise(model(kind))
    x = batch().chunk(RANKS)[rank].requires_grad_()
    out = module(x)
    loss(out).backward()
    for p in module.parameters():
        dist.all_reduce(p.grad)
        p.grad /= RANKS  # type: ignore[operator]
    assert x.grad is not None
    found = state(module) | {"out": out.detach(), "x": x.grad / RANKS}
    assert synchronise(module, None)(x).shape == out.shape
    return found


def training(kind: str, rank: int) -> Report:
    """Three steps under DistributedDataParallel, with shared statistics."""
    module = synchronise(model(kind))
    parallel = DistributedDataParallel(module)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.05)
    for step in range(3):
        optimizer.zero_grad()
        loss(parallel(batch(step).chunk(RANKS)[rank])).backward()
        optimizer.step()
    return state(module)


def own_statistics(kind: str, rank: int) -> Report:
    """A step under DistributedDataParallel as it is; buffers are those of rank 0."""
    module = model(kind)
    parallel = DistributedDataParallel(module)
    loss(parallel(batch().chunk(RANKS)[rank])).backward()
    return state(module)


def penalty(kind: str, rank: int) -> Report:
    """A gradient penalty through shared statistics."""
    module = synchronise(model(kind))
    x = batch().chunk(RANKS)[rank].requires_grad_()
    (slopes,) = torch.autograd.grad(loss(module(x)) / RANKS, x, create_graph=True)
    slopes.square().sum().backward()
    for p in module.parameters():
        if p.grad is not None:
            dist.all_reduce(p.grad)
    return state(module)


WORK: tuple[Callable[[str, int], Report], ...] = (one_step, training, own_statistics, penalty)
KINDS = ("chain", "fused")


def work(rank: int, folder: Path) -> None:
    found = {(f.__name__, kind): f(kind, rank) for f in WORK for kind in KINDS}
    torch.save(found, folder / f"rank {rank}")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Distributed:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(work, RANKS, folder)
    return [torch.load(folder / f"rank {rank}") for rank in range(RANKS)]


@pytest.mark.parametrize("kind", KINDS)
def test_shared_statistics_are_those_of_the_whole_batch(kind: str, ranks: Distributed) -> None:
    module = model(kind)
    x = batch().requires_grad_()
    out = module(x)
    loss(out).backward()
    whole = state(module) | {"out": out.detach(), "x": x.grad}
    parts = [rank["one_step", kind] for rank in ranks]
    for part in parts:
        for name in set(whole) - {"out", "x"}:
            assert torch.equal(part[name], parts[0][name]), name
    together = parts[0] | {k: torch.cat([part[k] for part in parts]) for k in ("out", "x")}
    assert_same(together, whole)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_training_equals_one_process(kind: str, ranks: Distributed) -> None:
    module = model(kind)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    for step in range(3):
        optimizer.zero_grad()
        loss(module(batch(step))).backward()
        optimizer.step()
    for rank in ranks:
        assert_same(rank["training", kind], state(module))


@pytest.mark.parametrize("kind", KINDS)
def test_own_statistics_under_data_parallelism(kind: str, ranks: Distributed) -> None:
    modules = [model(kind) for _ in range(RANKS)]
    for module, part in zip(modules, batch().chunk(RANKS), strict=True):
        loss(module(part)).backward()
    averaged = copy.deepcopy(state(modules[0]))
    for name, p in modules[1].named_parameters():
        averaged[f"{name}.grad"] = (averaged[f"{name}.grad"] + p.grad) / RANKS
    assert_same(ranks[0]["own_statistics", kind], averaged)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_penalty_through_shared_statistics(kind: str, ranks: Distributed) -> None:
    module = model(kind)
    x = batch().requires_grad_()
    (slopes,) = torch.autograd.grad(loss(module(x)), x, create_graph=True)
    slopes.square().sum().backward()
    for rank in ranks:
        assert_same(rank["penalty", kind], state(module))
