"""What a chain by the kernels launches and saves, and opcheck of its operations."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from bench.counting.saved import saved_bytes
from fastinfogan import experiments
from fastinfogan.networks import InfoGAN
from fastinfogan.nn import Chain, ConvBlock, Images, LinearBlock
from fastinfogan_kernels.conv_block import elementwise, image_conv, ops
from fastinfogan_kernels.runtime.launch import recording
from tests.helpers.by_kernels import a_chain, draw, everything, varied


class _Names(TorchDispatchMode):
    def __init__(self, names: list[str], calls: list[Any] | None = None) -> None:
        super().__init__()
        self.names = names
        self.calls = calls

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        if func.namespace == "fastinfogan":
            self.names.append(func._schema.name.partition("::")[2])
            if self.calls is not None:
                self.calls.append((func, tuple(args)))
        return func(*args, **(kwargs or {}))


@contextmanager
def operations(calls: list[Any] | None = None) -> Iterator[list[str]]:
    names: list[str] = []
    with _Names(names, calls):
        yield names


def test_frozen_weights_cost_nothing(device: torch.device) -> None:
    def count(*trained: str, needs_input: bool = False) -> tuple[int, int, int]:
        chain = a_chain(device)
        for name, p in chain.named_parameters():
            p.requires_grad_(name.startswith(trained))
        out = chain(draw().to(device).requires_grad_(needs_input))
        calls: list[Any] = []
        with operations(calls) as names:
            out.sum().backward()
        weights = names.count("weight_gradient") + names.count("image_weight_gradient")
        gamma = {"act_backward_reduce": 6, "data_gradient": 7}
        norms = sum(
            arguments[gamma[name]] is not None
            for name, (_, arguments) in zip(names, calls, strict=True)
            if name in gamma
        )
        return weights, names.count("data_gradient"), norms

    everything_trained = ("0", "1", "2", "3", "4")
    assert count(*everything_trained) == (5, 4, 3)
    assert count(*everything_trained, needs_input=True) == (5, 5, 3)
    assert count("4") == (1, 0, 0)
    assert count("3.layer.weight") == (1, 1, 1)
    assert count("3.norm") == (0, 1, 1)
    assert count("2.layer.weight", "4.layer") == (2, 2, 2)
    assert count(needs_input=True) == (0, 5, 3)


def test_frozen_weights_launch_no_kernels(device: torch.device) -> None:
    chain = a_chain(device)
    for p in chain[:4].parameters():
        p.requires_grad_(False)
    out = chain(draw().to(device))
    with recording(run=True) as launches:
        out.sum().backward()
    names = [launch.name for launch in launches]
    assert not any("implicit_gemm" in name for name in names)
    assert sum("weight_gradient" in name for name in names) == 1


def test_frozen_weights_save_no_feature_maps(device: torch.device) -> None:
    chain = a_chain(device)
    x = draw(16).to(device)
    with recording():
        whole = saved_bytes(lambda: chain(x), chain)
        chain[:4].requires_grad_(False)
        saved = saved_bytes(lambda: chain(x), chain)
    # The input, of which a second backward is made; what the last block reads; what it leaves.
    needed = x.nbytes + 16 * 4 * (12 + 16)
    assert needed <= saved < needed + 256
    assert saved < 0.6 * whole


def test_opcheck(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """Of every registered operation, with the tensors that a chain gives it."""
    # Without batch norm a tile's second sum is neither written nor read.
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **more: empty(*size, **more).zero_())
    chain = a_chain(device)
    calls: list[Any] = []
    pixels = torch.randint(0, 256, (5, 8, 8, 1), dtype=torch.uint8)
    with operations(calls):
        everything(chain, draw())
        wide = Chain(ConvBlock(8, 3, 4, 2), ConvBlock(3, 2, 1, batch_norm=False), impl="triton")
        everything(
            varied(wide).to(device), draw(2, 8).contiguous(memory_format=torch.channels_last)
        )
        for norm in (True, False):
            first = Chain(ConvBlock(1, 3, 4, 2, batch_norm=norm), impl="triton")
            everything(varied(first).to(device), Images(pixels, torch.tensor([4, 0, 3]), 0.1))
    seen: dict[str, int] = {}
    for operation, arguments in calls:
        name = operation._schema.name
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 2:
            continue
        fixed = tuple(a.detach() if isinstance(a, Tensor) else a for a in arguments)
        torch.library.opcheck(operation, fixed)
    modules = (ops, elementwise, image_conv)
    registered = [op for m in modules for op in vars(m).values() if isinstance(op, OpOverload)]
    assert {op._schema.name for op in registered} == set(seen)


def eager(chain: Chain) -> nn.Sequential:
    """A chain as one writes it in torch.nn."""
    layers: list[nn.Module] = []
    for block in chain:
        if isinstance(block, LinearBlock) and not any(isinstance(m, nn.Flatten) for m in layers):
            layers.append(nn.Flatten())
        layers.append(block.layer)
        if block.norm is not None:
            layers.append(block.norm)
        layers.append(nn.LeakyReLU(block.slope))
    return nn.Sequential(*layers)


@pytest.mark.parametrize("name", ["mnist", "svhn"])
def test_bytes_saved_for_backward(name: str) -> None:
    experiment = experiments.get(name)
    trunk = InfoGAN(experiment).trunk.train()
    trunk.impl = "triton"
    x = torch.randn(4, experiment.channels, experiment.height, experiment.width)
    x = x.contiguous(memory_format=torch.channels_last)
    with recording():
        fused = saved_bytes(lambda: trunk(x), trunk)
    assert fused <= 0.55 * saved_bytes(lambda: eager(trunk)(x), trunk)
