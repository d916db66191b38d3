"""fuse and unfuse: the model computes the same before, between and after."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch._dynamo.testing
from torch import nn

from fastinfogan.errors import InputError
from fastinfogan.nn import frozen_statistics, fuse, unfuse
from tests.helpers.compare import assert_same
from tests.helpers.fusing import MODELS, Attributes, everything, images, made, pair, sequential


@pytest.mark.parametrize("name", MODELS)
def test_the_same_model(name: str) -> None:
    make, chains = MODELS[name]
    fused, twin, report = pair(make)
    assert report.fused == chains
    for training in (True, False, True):
        fused.train(training)
        twin.train(training)
        assert_same(everything(fused), everything(twin))
    assert_same(fused.state_dict(), twin.state_dict())
    assert list(fused.state_dict()) == list(twin.state_dict())
    assert [n for n, _ in fused.named_parameters()] == [n for n, _ in twin.named_parameters()]
    assert fused.state_dict()._metadata.keys() == twin.state_dict()._metadata.keys()


@pytest.mark.parametrize("name", ["attributes", pytest.param("sequential", marks=pytest.mark.slow)])
def test_compiled(name: str) -> None:
    fused, twin, _ = pair(MODELS[name][0])
    torch._dynamo.reset()
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    assert_same(everything(fused, compiled), everything(twin))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.slow
def test_compiled_in_training_dtypes(dtype: torch.dtype) -> None:
    """One compilation for training and one for evaluation; fp64 takes the reference on a CPU."""
    fused = made(sequential).to(dtype)
    twin = copy.deepcopy(fused)
    fuse(fused)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(fused, fullgraph=True, backend=counter)
    for training in (True, False):
        fused.train(training)
        twin.train(training)
        for seed in (1, 2):
            x = images(seed).to(dtype)
            tolerance = 1e-4 if dtype == torch.float32 else 0.1
            torch.testing.assert_close(compiled(x), twin(x), rtol=tolerance, atol=tolerance)
    assert counter.frame_count == 2


@pytest.mark.parametrize("assign", [False, True])
def test_load_state_dict(assign: bool) -> None:
    fused, twin, _ = pair(sequential)
    twin(images(3))
    fused.load_state_dict(twin.state_dict(), assign=assign)
    fused.eval()
    twin.eval()
    torch.testing.assert_close(fused(images()), twin(images()))
    fused.train()
    fused(images(4))
    twin.load_state_dict(copy.deepcopy(fused.state_dict()))
    fused.eval()
    torch.testing.assert_close(fused(images()), twin(images()))
    with pytest.raises(RuntimeError, match=r"size mismatch for 0\.weight"):
        fused.load_state_dict(twin.state_dict() | {"0.weight": torch.zeros(4, 3, 4, 4)})
    with pytest.raises(RuntimeError, match=r"Missing key.*3\.running_mean"):
        fused.load_state_dict({k: v for k, v in twin.state_dict().items() if k != "3.running_mean"})


def test_an_optimizer_from_before_fuse() -> None:
    fused = made(sequential)
    twin = copy.deepcopy(fused)
    optimizers = [torch.optim.Adam(m.parameters(), lr=1e-2) for m in (fused, twin)]
    fuse(fused)
    for step in range(3):
        for model, optimizer in zip((fused, twin), optimizers, strict=True):
            optimizer.zero_grad()
            model(images(step)).square().sum().backward()
            optimizer.step()
    fused.eval()
    twin.eval()
    torch.testing.assert_close(fused(images()), twin(images()), rtol=1e-5, atol=1e-7)
    assert not torch.equal(
        fused.state_dict()["0.weight"], made(sequential).state_dict()["0.weight"]
    )


def test_moving_and_modes() -> None:
    fused, twin, _ = pair(sequential)
    for model in (fused, twin):
        model.float()
        model.get_submodule("3").eval()
        model.get_parameter("0.weight").requires_grad_(False)
    x = images().float()
    for model in (fused, twin):
        model(x).sum().backward()
    torch.testing.assert_close(fused.state_dict(), twin.state_dict(), rtol=1e-4, atol=1e-4)
    assert fused.state_dict()["3.num_batches_tracked"] == 0
    assert fused.state_dict()["7.num_batches_tracked"] == 1
    assert fused.get_parameter("0.weight").grad is None
    fused.to("meta")
    assert fused(torch.zeros(2, 2, 8, 8, device="meta")).device.type == "meta"


def test_frozen_statistics() -> None:
    fused, twin, _ = pair(sequential)
    with frozen_statistics(fused):
        fused(images())
    assert_same(fused.state_dict(), twin.state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_independent(copied: Callable[[nn.Module], nn.Module]) -> None:
    fused, twin, _ = pair(Attributes)
    other = copied(fused)
    with torch.no_grad():
        other.get_parameter("conv2.weight").zero_()
    assert not torch.equal(other(images()), fused(images()))
    twin(images())
    assert_same(everything(fused), everything(twin))
    unfuse(other)
    other.load_state_dict(twin.state_dict())
    assert_same(everything(other), everything(twin))


def test_a_part_unfuses_its_whole_chain() -> None:
    fused, twin, _ = pair(sequential)
    unfuse(fused.get_submodule("3"))
    assert type(fused.get_submodule("4")) is nn.ReLU
    assert "FusedReLU" in repr(fused)
    assert_same(everything(fused), everything(twin))


def test_unfuse_restores_the_layers() -> None:
    model = made(sequential)
    layers = list(model.children())
    twin = copy.deepcopy(model)
    fuse(model)
    for m in (model, twin):
        m(images()).sum().backward()
        m.eval()
    unfuse(model)
    assert all(a is b for a, b in zip(layers, model.children(), strict=True))
    assert [type(a) for a in layers] == [type(b) for b in twin.children()]
    assert [vars(a).keys() for a in layers] == [vars(b).keys() for b in twin.children()]
    assert not any(layer.training for layer in layers)
    assert_same(model.state_dict(), twin.state_dict())
    assert_same(everything(model), everything(twin))


def test_fusing_twice_is_harmless() -> None:
    fused, twin, first = pair(sequential)
    again = fuse(fused)
    assert not again.fused
    assert again.left == first.left
    assert_same(everything(fused), everything(twin))


def test_other_ranks_and_empty_batches() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU())
    twin = copy.deepcopy(model)
    assert fuse(model).fused
    for x in (torch.randn(2, 5, 5), torch.zeros(0, 2, 5, 5)):
        torch.testing.assert_close(model(x), twin(x))
    flat = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(5), nn.ReLU())
    assert not fuse(flat).fused
    flat = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU())
    twin = copy.deepcopy(flat)
    assert fuse(flat).fused
    torch.testing.assert_close(flat(torch.ones(2, 5, 3)), twin(torch.ones(2, 5, 3)))


def test_impl() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU())
    fuse(model, impl="triton")
    with pytest.raises(InputError, match="TRITON_INTERPRET=1"):
        model(torch.zeros(1, 2, 5, 5))


def test_report_and_repr() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3))
    assert str(fuse(model)) == (
        "fused  0 + 1\nleft   2: neither batch norm nor an activation follows"
    )
    assert str(fuse(nn.Sequential(nn.ReLU()))) == "nothing to fuse"
    assert repr(model[0]).endswith("computes 0 + 1)")
    assert repr(model[1]) == "FusedReLU()"
