"""Adam's kernel against torch.optim.Adam, and its table of addresses."""

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import Parameter

from fastinfogan.errors import InputError
from fastinfogan.optim import Adam
from fastinfogan_kernels.adam.adam import (
    OVERFLOWED,
    GradScaling,
    Hyperparameters,
    MultiTensorAdam,
    expm1,
)
from fastinfogan_kernels.adam.multi_tensor import CHUNK, AddressTable, TensorGroup

BETAS = (0.5, 0.999)


def parameters(device: torch.device) -> list[Parameter]:
    """Whole chunks, a part of one, channels_last memory, a scalar, nothing, unaligned memory."""
    source = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return (0.1 * torch.randn(shape, generator=source)).to(device)

    drawn = [
        draw(2, CHUNK), draw(3, 700), draw(5, 3, 4, 4).to(memory_format=torch.channels_last),
        draw(), draw(0, 3),
    ]  # fmt: skip
    unaligned = torch.empty(CHUNK + 8, device=device)[1:]
    unaligned.copy_(draw(CHUNK + 7))
    return [Parameter(t) for t in (*drawn, unaligned)]


def pair(device: torch.device) -> tuple[list[Parameter], list[Parameter], torch.optim.Adam]:
    """Return parameters to be tested, and the same on the CPU with torch's Adam."""
    tested, plain = parameters(device), parameters(torch.device("cpu"))
    return tested, plain, torch.optim.Adam(plain, 1e-2, BETAS)


def set_gradients(ps: list[Parameter], step: int, rounded: torch.dtype = torch.float32) -> None:
    """Set gradients, rounded to a dtype; the scalar has none now and then."""
    source = torch.Generator().manual_seed(step)
    for p in ps:
        g = torch.randn(p.shape, generator=source).to(rounded)
        p.grad = None if p.dim() == 0 and step % 3 == 1 else g.to(p.device, p.dtype)


def largest_difference(a: list[Parameter], b: list[Parameter]) -> float:
    pairs = [(x.detach().cpu(), y.detach()) for x, y in zip(a, b, strict=True) if x.numel()]
    return max((x.double() - y.double()).abs().max().item() for x, y in pairs)


def test_twenty_steps_of_every_kind_of_tensor(device: torch.device) -> None:
    tested, plain, baseline = pair(device)
    adam = Adam(tested, 1e-2, BETAS, impl="triton")
    for step in range(20):
        for ps, optimizer in ((tested, adam), (plain, baseline)):
            set_gradients(ps, step)
            optimizer.step()
    assert largest_difference(tested, plain) < 1e-6
    for p, q in zip(tested, plain, strict=True):
        assert adam.state[p]["step"] == baseline.state[q]["step"]


def test_many_steps(device: torch.device) -> None:
    drawn = 0.1 * torch.randn(7, 5, generator=torch.Generator().manual_seed(3))
    tested, plain = [Parameter(drawn.to(device))], [Parameter(drawn.clone())]
    for ps, optimizer in (
        (tested, Adam(tested, 1e-3, BETAS, impl="triton")),
        (plain, torch.optim.Adam(plain, 1e-3, BETAS)),
    ):
        for step in range(100 if device.type == "cpu" else 1000):
            set_gradients(ps, step)
            optimizer.step()
    assert largest_difference(tested, plain) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_working_copies_and_their_gradients(dtype: torch.dtype, device: torch.device) -> None:
    tested, plain, baseline = pair(device)
    copies = {p: torch.empty_like(p, dtype=dtype) for p in tested}
    adam = Adam(tested, 1e-2, BETAS, working_copies=copies, impl="triton")
    for step in range(3):
        set_gradients(plain, step, dtype)
        baseline.step()
        for p, q in zip(tested, plain, strict=True):
            copies[p].grad = None if q.grad is None else q.grad.to(device, dtype)
        adam.step()
    assert largest_difference(tested, plain) < 1e-6
    for p, copy in copies.items():
        rounded = p.detach().to(dtype)
        if dtype == torch.bfloat16 and device.type == "cpu":  # the interpreter truncates
            rounded = (p.detach().view(torch.int32) & -(1 << 16)).view(torch.float32).to(dtype)
        assert torch.equal(copy, rounded)


def test_found_inf_skips_and_counts(device: torch.device) -> None:
    """With two groups a step is one step; nothing changes, not even the step counters."""
    tested, plain, baseline = pair(device)
    adam = Adam([{"params": tested[:2]}, {"params": tested[2:]}], 1e-2, BETAS, impl="triton")
    found = torch.zeros(1, device=device)
    adam.found_inf = found  # type: ignore[attr-defined]
    adam.grad_scale = torch.full((1,), 8.0, device=device)  # type: ignore[attr-defined]
    for step in range(4):
        set_gradients(plain, step)
        baseline.step()
        set_gradients(tested, step)
        for p in tested:
            p.grad = None if p.grad is None else p.grad * 8
        found.fill_(1)
        before = [p.clone() for p in tested]
        adam.step()
        assert all(torch.equal(p, b) for p, b in zip(tested, before, strict=True))
        found.zero_()
        adam.step()
    assert largest_difference(tested, plain) < 1e-6
    assert adam.skipped == 4
    assert adam.state[tested[0]]["step"] == 4


def group_of(p: Tensor, gradient: Tensor) -> TensorGroup:
    step = torch.zeros((), device=p.device)
    return TensorGroup(p, gradient, torch.zeros_like(p), torch.zeros_like(p), step)


def test_a_learning_rate_on_the_device(device: torch.device) -> None:
    tested, plain, baseline = pair(device)
    lr = torch.tensor(1e-2, device=device)
    groups = [group_of(p.detach(), torch.ones_like(p)) for p in tested]
    launcher = MultiTensorAdam(device)
    for _ in range(3):
        launcher.update(groups, Hyperparameters(lr, *BETAS, 1e-8), GradScaling())
        for q in plain:
            q.grad = torch.ones_like(q)
        baseline.step()
        lr.mul_(0.5)
        baseline.param_groups[0]["lr"] *= 0.5
    assert largest_difference(tested, plain) < 1e-6


def test_a_table_is_replaced_when_an_address_changes_and_never_rewritten(
    device: torch.device,
) -> None:
    table = AddressTable(device)
    p, other = torch.zeros(5, device=device), torch.ones(5, device=device)
    group = group_of(p, torch.ones_like(p))
    first, chunks = table.of([group])
    assert chunks == 1
    assert table.of([group])[0] is first
    before = first.clone()
    rest = (group.exp_avg, group.exp_avg_sq, group.step)
    second, _ = table.of([TensorGroup(p, other, *rest)])
    assert second is not first
    assert torch.equal(first, before)
    assert second[1] == other.data_ptr()
    with pytest.raises(InputError, match="both must fill memory in the same order"):
        table.of([group_of(p, torch.ones(10, device=device)[::2])])


@triton.jit
def _expm1_kernel(x_ptr, out_ptr, SIZE: tl.constexpr):  # noqa: ANN001, ANN202, N803
    at = tl.arange(0, SIZE)
    tl.store(out_ptr + at, expm1(tl.load(x_ptr + at)))


def test_expm1_against_fp64(device: torch.device) -> None:
    x = -torch.logspace(-9, 2, 4096, device=device)
    out = torch.empty_like(x)
    _expm1_kernel[(1,)](x, out, 4096)
    truth = torch.expm1(x.double())
    assert ((out - truth) / truth).abs().max() < 3e-7


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), None])
def test_overflowed_gradients_are_found(
    bad: float | None, device: torch.device, dtype: torch.dtype
) -> None:
    """In the last element of the last tensor, after whole chunks; the count of rows stays."""
    groups = []
    for size in (CHUNK + 3, 7, 2 * CHUNK + 1):
        p = torch.randn(size, device=device)
        groups.append(group_of(p, torch.randn(size, device=device).to(dtype)))
    if bad is not None:
        groups[-1].gradient[-1] = bad
    non_finite = torch.tensor([2], dtype=torch.int32, device=device)
    MultiTensorAdam(device).find_overflow(groups, non_finite)
    assert non_finite.item() == (2 if bad is None else 2 | OVERFLOWED)
