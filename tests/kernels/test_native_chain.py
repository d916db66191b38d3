"""Chains and modules on CPU tensors by ATen's products and our epilogues in C++."""

import pytest
import torch
from torch import Tensor

from bench.accuracy import check_accuracy
from fastinfogan.errors import InputError
from fastinfogan.nn import Chain, ConvBlock
from fastinfogan.nn.forward import Implementation
from fastinfogan_kernels.conv_block.autograd import native_chain
from fastinfogan_kernels.conv_block.reference import reference_chain
from fastinfogan_kernels.runtime.launch import native_available
from tests.helpers.chain_cases import (
    Case,
    every_window,
    experiments_at_small_widths,
    outcome,
)
from tests.helpers.compare import draw

CASES = {**every_window(), **experiments_at_small_widths()}

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


def chain(impl: Implementation) -> Chain:
    torch.manual_seed(4)
    return Chain(ConvBlock(2, 6, 4, 2), ConvBlock(6, 3, 4, 2, batch_norm=False), impl=impl)


@needs_native
def test_auto_on_cpu_tensors_is_native() -> None:
    x = draw(6, 2, 8, 8, dtype=torch.float32)
    out = chain("auto")(x.requires_grad_())
    assert torch.equal(out, chain("native")(x))
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert "Chain" in type(out.grad_fn.next_functions[0][0]).__name__


@needs_native
def test_what_it_cannot_do_is_said() -> None:
    wide = chain("native").double()
    with pytest.raises(InputError, match="impl='native' computes in fp32, fp16 or bf16"):
        wide(draw(4, 2, 8, 8))
    assert wide[0].norm.num_batches_tracked == 0  # what is refused was no batch
    with pytest.raises(InputError, match="impl='native' needs CPU tensors"):
        chain("native").to("meta")(torch.empty(4, 2, 8, 8, device="meta"))
    with pytest.raises(InputError, match="impl is 'auto'"):
        chain("fastest")(draw(4, 2, 8, 8))  # type: ignore[arg-type]
