"""Chains and modules on CPU tensors by ATen's products and our epilogues in C++."""

import copy

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bench.accuracy import check_accuracy
from fastinfogan.errors import InputError
from fastinfogan.nn import Chain, ConvBlock, LinearBlock, UpconvBlock
from fastinfogan.nn.forward import Implementation
from fastinfogan_kernels.conv_block.autograd import native_chain
from fastinfogan_kernels.conv_block.layers import Images
from fastinfogan_kernels.conv_block.reference import reference_chain
from fastinfogan_kernels.runtime.launch import native_available
from tests.helpers.chain_cases import (
    Case,
    every_window,
    experiments_at_small_widths,
    outcome,
)
from tests.helpers.compare import assert_same, everything

CASES = {**every_window(), **experiments_at_small_widths()}

FP32 = {"rtol": 1e-4, "atol": 1e-5}

needs_native = pytest.mark.skipif(not native_available(), reason="_native not compiled")


def under_autocast(x: Tensor, *rest: object) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return reference_chain(x, *rest)  # type: ignore[arg-type]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_chain(case: Case, dtype: torch.dtype) -> None:
    """fp64 runs the same passes in plain torch; bf16 has wide weights, as under autocast."""
    wide = torch.promote_types(dtype, torch.float32)
    truth = outcome(reference_chain, case, torch.float64, torch.float64)
    baseline = outcome(under_autocast if dtype != wide else reference_chain, case, dtype, wide)
    actual = outcome(native_chain, case, dtype, wide)
    check_accuracy(actual, baseline, truth, dtype, kinks=dtype != wide)


@pytest.mark.parametrize("case", list(CASES.values())[:3], ids=list(CASES)[:3])
def test_no_thread_changes_more_than_atens_products(case: Case) -> None:
    runs = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        runs.append(outcome(native_chain, case, torch.float32, torch.float32))
    check_accuracy(runs[1], runs[0], runs[0], torch.float32)


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
    native = chain()
    with torch.no_grad():
        for i, p in enumerate(native.parameters()):
            p.add_(0.2 * draw(*p.shape, seed=i))
    reference = copy.deepcopy(native)
    reference.impl = "reference"
    return native, reference


@needs_native
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("training", [True, False])
def test_a_module(order: torch.memory_format, training: bool) -> None:
    native, reference = twins()
    x = draw(6, 2, 8, 8).contiguous(memory_format=order)
    found = [everything(each.train(training), each, x) for each in (native, reference)]
    assert_same(*found, **FP32)
    assert found[0]["out"].is_contiguous(memory_format=torch.channels_last)


@needs_native
def test_auto_on_cpu_tensors_is_native() -> None:
    x = draw(6, 2, 8, 8)
    native, _ = twins()
    auto = copy.deepcopy(native)
    auto.impl = "auto"
    assert torch.equal(auto(x), native(x))
    assert "Chain" in type(auto(x.requires_grad_()).grad_fn.next_functions[0][0]).__name__


@needs_native
def test_under_compile_with_no_break() -> None:
    native, reference = twins()
    torch._dynamo.reset()
    compiled = torch.compile(native, fullgraph=True)
    x = draw(4, 2, 8, 8)
    assert_same(everything(native, compiled, x), everything(reference, reference, x), **FP32)


@needs_native
def test_checkpointing_computes_the_same_gradients() -> None:
    native, reference = twins()
    x = draw(4, 2, 8, 8)

    def again(x: Tensor) -> Tensor:
        return checkpoint(native, x, use_reentrant=False)  # type: ignore[no-any-return]

    found, expected = everything(native, again, x), everything(reference, reference, x)
    gradients = [name for name in expected if "running" not in name and "tracked" not in name]
    assert_same(*({k: each[k] for k in gradients} for each in (found, expected)), **FP32)


@needs_native
def test_gradient_penalties() -> None:
    def penalty(module: Chain) -> list[Tensor]:
        x = draw(4, 2, 8, 8).requires_grad_()
        (first,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
        weights = [block.layer.weight for block in module]
        return list(torch.autograd.grad(first.square().sum(), weights))

    for native, reference in zip(*map(penalty, twins()), strict=True):
        assert (native - reference).norm() <= 1e-3 * reference.norm()


@needs_native
@pytest.mark.parametrize("trained", ["0.", "1.norm", "2.layer.weight", "x"])
def test_frozen_parameters_get_no_gradient_and_change_no_other(trained: str) -> None:
    native, reference = twins()
    for module in (native, reference):
        for name, p in module.named_parameters():
            p.requires_grad_(name.startswith(trained) and p.requires_grad)
    x = draw(4, 2, 8, 8)
    assert_same(everything(native, native, x), everything(reference, reference, x), **FP32)


@needs_native
def test_images_are_read_as_the_kernels_read_them() -> None:
    pixels = torch.randint(0, 256, (5, 8, 8, 2), dtype=torch.uint8)
    index = torch.tensor([4, 0, 3])
    native, reference = twins()
    scaled = pixels[index].permute(0, 3, 1, 2).float() / 255 * 2 - 1
    torch.testing.assert_close(
        native(Images(pixels, index, 2 / 255, -1.0)), reference(scaled), rtol=1e-4, atol=1e-5
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
