"""Adam's kernel under the interpreter."""

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import Parameter

from fastinfogan.errors import InputError
from fastinfogan.optim import Adam
from fastinfogan_kernels.adam.adam import OVERFLOWED, OneLaunch, Rates, Scaling
from fastinfogan_kernels.adam.adam_kernels import expm1
from fastinfogan_kernels.adam.multi_tensor import CHUNK, AddressTable, Slot

BETAS = (0.5, 0.999)


def parameters(dtype: torch.dtype = torch.float32) -> list[Parameter]:
    """Whole chunks, a part of one, channels_last memory, an odd address, a scalar, and nothing."""
    source = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return 0.1 * torch.randn(shape, generator=source, dtype=torch.float64)

    drawn = [
        draw(2, CHUNK), draw(3, 700), draw(5, 3, 4, 4).to(memory_format=torch.channels_last),
        draw(), draw(0, 3),
    ]  # fmt: skip
    off = torch.empty(CHUNK + 8, dtype=dtype)[1:]  # no address of 16 bytes
    off.copy_(draw(CHUNK + 7))
    return [Parameter(t.to(dtype)) for t in drawn] + [Parameter(off)]


def train(
    optimizer: torch.optim.Optimizer, steps: int, like: torch.dtype | None = None, first: int = 0
) -> None:
    """Give gradients, rounded to `like`; the scalar has none now and then."""
    ps = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(first, first + steps):
        source = torch.Generator().manual_seed(step)
        for p in ps:
            g = torch.randn(p.shape, generator=source, dtype=torch.float64)
            p.grad = None if p.dim() == 0 and step % 3 == 1 else g.to(like or p.dtype).to(p.dtype)
        optimizer.step()


def furthest(a: list[Parameter], b: list[Parameter]) -> float:
    return max(
        (x.double() - y.double()).abs().max().item() for x, y in zip(a, b, strict=True) if x.numel()
    )


def test_twenty_steps_of_every_kind_of_tensor() -> None:
    ours, theirs = parameters(), parameters()
    adam, plain = Adam(ours, 1e-2, BETAS, impl="triton"), torch.optim.Adam(theirs, 1e-2, BETAS)
    train(adam, 20)
    train(plain, 20)
    assert furthest(ours, theirs) < 1e-6
    for p, q in zip(ours, theirs, strict=True):
        assert adam.state[p]["step"] == plain.state[q]["step"]


def test_a_thousand_steps_equal_torchs() -> None:
    def few() -> list[Parameter]:
        return [Parameter(0.1 * torch.randn(7, 5, generator=torch.Generator().manual_seed(3)))]

    ours, theirs = few(), few()
    train(Adam(ours, 1e-3, BETAS, impl="triton"), 1000)
    train(torch.optim.Adam(theirs, 1e-3, BETAS), 1000)
    assert furthest(ours, theirs) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_gradients_and_copies(dtype: torch.dtype) -> None:
    ours, theirs = parameters(), parameters()
    copies = {p: torch.empty_like(p, dtype=dtype) for p in ours}
    adam, plain = (
        Adam(ours, 1e-2, BETAS, copies=copies, impl="triton"),
        torch.optim.Adam(theirs, 1e-2, BETAS),
    )
    for step in range(3):
        train(plain, 1, dtype, step)
        for p, q in zip(ours, theirs, strict=True):
            copies[p].grad = None if q.grad is None else q.grad.to(dtype)
        adam.step()
    assert furthest(ours, theirs) < 1e-6
    for p, c in copies.items():
        rounded = p.detach().to(dtype)
        if dtype == torch.bfloat16:  # the interpreter truncates, a GPU rounds
            rounded = (p.detach().view(torch.int32) & -(1 << 16)).view(torch.float32).to(dtype)
        assert torch.equal(c, rounded)


def test_found_inf_skips_and_counts() -> None:
    """With two groups a step is one step; nothing moves, not even the step counters."""
    ours, theirs = parameters(), parameters()
    adam = Adam([{"params": ours[:2]}, {"params": ours[2:]}], 1e-2, BETAS, impl="triton")
    plain = torch.optim.Adam(theirs, 1e-2, BETAS)
    found, scale = torch.zeros(1), torch.full((1,), 8.0)
    adam.found_inf, adam.grad_scale = found, scale  # type: ignore[attr-defined]
    for step in range(4):
        train(plain, 1, first=step)
        for p, q in zip(ours, theirs, strict=True):
            p.grad = None if q.grad is None else q.grad * 8
        found.fill_(1)
        before = [p.clone() for p in ours]
        adam.step()
        assert all(torch.equal(p, b) for p, b in zip(ours, before, strict=True))
        found.zero_()
        adam.step()
    assert furthest(ours, theirs) < 1e-6
    assert adam.skipped == 4
    assert adam.state[ours[0]]["step"] == 4


def test_rates_on_the_device() -> None:
    ours, theirs = parameters(), parameters()
    lr = torch.tensor(1e-2)
    p = [Slot(q, torch.ones_like(q), torch.zeros_like(q), torch.zeros_like(q), torch.zeros(()))
         for q in (t.detach() for t in ours)]  # fmt: skip
    launcher = OneLaunch(torch.device("cpu"))
    plain = torch.optim.Adam(theirs, 1e-2, BETAS)
    for _ in range(3):
        launcher.update(p, Rates(lr, *BETAS, 1e-8), Scaling())
        for q in theirs:
            q.grad = torch.ones_like(q)
        plain.step()
        lr.mul_(0.5)
        plain.param_groups[0]["lr"] *= 0.5
    assert furthest(ours, theirs) < 1e-6


def test_a_table_is_made_anew_only_when_an_address_changes_and_never_rewritten() -> None:
    p = torch.zeros(5)

    def slot(gradient: Tensor) -> Slot:
        return Slot(p, gradient, *moments, step)

    moments, step = (torch.zeros(5), torch.zeros(5)), torch.zeros(())
    one, other = torch.ones(5), torch.ones(5)
    table = AddressTable(torch.device("cpu"))
    first, chunks = table.of([slot(one)])
    assert chunks == 1
    assert table.of([slot(one)])[0] is first
    before = first.clone()
    second, _ = table.of([slot(other)])
    assert second is not first
    assert torch.equal(first, before)
    assert second[1] == other.data_ptr()
    with pytest.raises(InputError, match="both must fill memory in the same order"):
        table.of([slot(torch.ones(10)[::2])])


@triton.jit
def _expm1_kernel(x_ptr, out_ptr, SIZE: tl.constexpr):  # noqa: ANN001, ANN202, N803
    at = tl.arange(0, SIZE)
    tl.store(out_ptr + at, expm1(tl.load(x_ptr + at)))


def test_expm1_against_fp64() -> None:
    x = -torch.logspace(-9, 2, 4096)
    out = torch.empty_like(x)
    _expm1_kernel[(1,)](x, out, 4096)
    truth = torch.expm1(x.double())
    assert ((out - truth) / truth).abs().max() < 3e-7


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_overflowed_gradients_are_found(bad: float | None, dtype: torch.dtype) -> None:
    """In the last element of the last tensor, behind whole chunks; rows counted before stay."""
    sizes = (CHUNK + 3, 7, 2 * CHUNK + 1)
    slots = []
    for size in sizes:
        p = torch.randn(size)
        slots.append(Slot(p, torch.randn(size).to(dtype), p.clone(), p.clone(), torch.zeros(())))
    if bad is not None:
        gradient = slots[-1].gradient
        assert gradient is not None
        gradient[-1] = bad
    problems = torch.tensor([2], dtype=torch.int32)
    OneLaunch(torch.device("cpu")).find_overflow(slots, problems)
    assert problems.item() == (2 if bad is None else 2 | OVERFLOWED)
