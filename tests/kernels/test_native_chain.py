"""Chains and modules on CPU tensors by ATen's products and our epilogues in C++."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastinfogan.errors import InputError
from fastinfogan.nn import Chain, ConvBlock, LinearBlock, UpconvBlock
from fastinfogan.nn.forward import Implementation
from fastinfogan_kernels.conv_block.autograd import native_chain
from fastinfogan_kernels.conv_block.layers import Images
from fastinfogan_kernels.conv_block.reference import reference_chain
from fastinfogan_kernels.runtime.backend import native_available
from tests.helpers.chain_cases import (
    Case,
    assert_close,
    every_map,
    experiments_at_small_widths,
    far,
    outcome,
)

CASES = {**every_map(), **experiments_at_small_widths()}

needs_native = pytest.mark.skipif(not native_available(), reason="_native not compiled")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_chain_in_fp32(case: Case) -> None:
    truth = outcome(reference_chain, case, torch.float64, torch.float64)
    theirs = outcome(reference_chain, case, torch.float32, torch.float32)
    ours = outcome(native_chain, case, torch.float32, torch.float32)
    assert_close(ours, truth, theirs, 3e-6)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_chain_in_fp64(case: Case) -> None:
    """The same passes in plain torch, which any device and dtype can do."""
    truth = outcome(reference_chain, case, torch.float64, torch.float64)
    ours = outcome(native_chain, case, torch.float64, torch.float64)
    assert max(far(ours, truth).values()) < 1e-12


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_chain_in_bf16_with_wide_weights(case: Case) -> None:
    """Torch's way to the same: weights cast by autocast, gradients in fp32."""

    def under_autocast(x: Tensor, *rest: object) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return reference_chain(x, *rest)  # type: ignore[arg-type]

    truth = outcome(reference_chain, case, torch.float64, torch.float64)
    theirs = outcome(under_autocast, case, torch.bfloat16, torch.float32)
    ours = outcome(native_chain, case, torch.bfloat16, torch.float32)
    assert_close(ours, truth, theirs, 1e-2)


@pytest.mark.parametrize("case", list(CASES.values())[:3], ids=list(CASES)[:3])
def test_no_thread_changes_a_bit(case: Case) -> None:
    runs = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        runs.append(outcome(native_chain, case, torch.float32, torch.float32))
    assert max(far(*runs).values()) < 1e-6  # ATen's products may differ; ours must not grow it


def chain(impl: Implementation = "native") -> Chain:
    return Chain(
        ConvBlock(2, 6, 4, 2, batch_norm=False),
        ConvBlock(6, 10, 4, 2),
        LinearBlock(40, 36, shape=(2, 2, 9)),
        UpconvBlock(9, 3, 4, 2, batch_norm=False, activation="tanh"),
        impl=impl,
    )


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def twins() -> tuple[Chain, Chain]:
    torch.manual_seed(4)
    ours = chain()
    with torch.no_grad():
        for i, p in enumerate(ours.parameters()):
            p.add_(0.2 * draw(*p.shape, seed=i))
    theirs = copy.deepcopy(ours)
    theirs.impl = "reference"
    return ours, theirs


def everything(
    module: nn.Module, x: Tensor, run: Callable[[Tensor], Tensor] | None = None
) -> dict[str, Tensor]:
    """Output, gradients and buffers after one forward and backward."""
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    out = (run or module)(leaf)
    (out * draw(*out.shape, seed=9).to(out.dtype)).sum().backward()
    found = {"out": out.detach(), "x": leaf.grad}
    found |= {k: p.grad for k, p in module.named_parameters() if p.grad is not None}
    found |= dict(module.named_buffers())
    return found  # type: ignore[return-value]


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(
            ours[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
        )


@needs_native
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("training", [True, False])
def test_a_module(order: torch.memory_format, training: bool) -> None:
    ours, theirs = twins()
    x = draw(6, 2, 8, 8).contiguous(memory_format=order)
    found = [everything(each.train(training), x) for each in (ours, theirs)]
    assert_same(*found)
    assert found[0]["out"].is_contiguous(memory_format=torch.channels_last)


@needs_native
def test_auto_on_cpu_tensors_is_native() -> None:
    x = draw(6, 2, 8, 8)
    ours, _ = twins()
    auto = copy.deepcopy(ours)
    auto.impl = "auto"
    assert torch.equal(auto(x), ours(x))
    assert "Chain" in type(auto(x.requires_grad_()).grad_fn.next_functions[0][0]).__name__


@needs_native
def test_under_compile_with_no_break() -> None:
    ours, theirs = twins()
    torch._dynamo.reset()
    compiled = torch.compile(ours, fullgraph=True)
    x = draw(4, 2, 8, 8)
    assert_same(everything(ours, x, compiled), everything(theirs, x))


@needs_native
def test_checkpointing_computes_the_same_gradients() -> None:
    ours, theirs = twins()
    x = draw(4, 2, 8, 8)

    def again(x: Tensor) -> Tensor:
        return checkpoint(ours, x, use_reentrant=False)  # type: ignore[no-any-return]

    found, wanted = everything(ours, x, again), everything(theirs, x)
    gradients = [name for name in wanted if "running" not in name and "tracked" not in name]
    assert_same({k: found[k] for k in gradients}, {k: wanted[k] for k in gradients})


@needs_native
def test_gradient_penalties() -> None:
    def penalty(module: Chain) -> list[Tensor]:
        x = draw(4, 2, 8, 8).requires_grad_()
        (first,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
        weights = [block.layer.weight for block in module]
        return list(torch.autograd.grad(first.square().sum(), weights))

    for ours, theirs in zip(*map(penalty, twins()), strict=True):
        assert (ours - theirs).norm() <= 1e-3 * theirs.norm()


@needs_native
@pytest.mark.parametrize("trained", ["0.", "1.norm", "2.layer.weight", "x"])
def test_frozen_parameters_get_no_gradient_and_change_no_other(trained: str) -> None:
    ours, theirs = twins()
    for module in (ours, theirs):
        for name, p in module.named_parameters():
            p.requires_grad_(name.startswith(trained) and p.requires_grad)
    x = draw(4, 2, 8, 8)
    assert_same(everything(ours, x), everything(theirs, x))


@needs_native
def test_images_are_read_as_the_kernels_read_them() -> None:
    pixels = torch.randint(0, 256, (5, 8, 8, 2), dtype=torch.uint8)
    index = torch.tensor([4, 0, 3])
    ours, theirs = twins()
    scaled = pixels[index].permute(0, 3, 1, 2).float() / 255 * 2 - 1
    torch.testing.assert_close(
        ours(Images(pixels, index, 2 / 255, -1.0)), theirs(scaled), rtol=1e-4, atol=1e-5
    )


@needs_native
def test_what_it_cannot_do_is_said() -> None:
    wide = chain().double()
    with pytest.raises(InputError, match="impl='native' computes in fp32, fp16 or bf16"):
        wide(draw(4, 2, 8, 8).double())
    assert wide[1].norm.num_batches_tracked == 0  # what is refused was no batch
    with pytest.raises(InputError, match="impl='native' needs CPU tensors"):
        chain().to("meta")(torch.empty(4, 2, 8, 8, device="meta"))
    with pytest.raises(InputError, match="impl is 'auto'"):
        chain("fastest")(draw(4, 2, 8, 8))  # type: ignore[arg-type]
