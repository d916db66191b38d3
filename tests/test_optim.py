"""Adam against torch.optim.Adam: the same numbers, state and interface."""

import copy
import pickle
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from fastinfogan.errors import InputError
from fastinfogan.optim import Adam
from fastinfogan_kernels.runtime.launch import native_available

Impl = Literal["reference", "native"]
IMPLEMENTATIONS = [
    "reference",
    pytest.param(
        "native", marks=pytest.mark.skipif(not native_available(), reason="_native not compiled")
    ),
]
BETAS = (0.5, 0.999)


@pytest.fixture(params=IMPLEMENTATIONS)
def impl(request: pytest.FixtureRequest) -> Impl:
    return request.param  # type: ignore[no-any-return]


def parameters(dtype: torch.dtype = torch.float32) -> list[Parameter]:
    """Rows, a map's weight in channels_last memory, a scalar, a long vector, and nothing at all."""
    source = torch.Generator().manual_seed(1)
    shapes = [(33, 7), (5, 3, 4, 4), (), (2500,), (0, 3)]
    drawn = [0.1 * torch.randn(shape, generator=source, dtype=torch.float64) for shape in shapes]
    drawn[1] = drawn[1].to(memory_format=torch.channels_last)
    return [Parameter(t.to(dtype)) for t in drawn]


def gradients(step: int, like: list[Parameter]) -> list[Tensor | None]:
    """Contiguous ones, whatever the parameter's strides; the scalar has none now and then."""
    source = torch.Generator().manual_seed(step)
    drawn = [torch.randn(p.shape, generator=source, dtype=torch.float64) * 2**-step for p in like]
    return [
        None if p.dim() == 0 and step % 3 == 1 else g.to(p.dtype)
        for p, g in zip(like, drawn, strict=True)
    ]


def train(optimizer: torch.optim.Optimizer, steps: range, dtype: torch.dtype | None = None) -> None:
    """So many steps, all groups' parameters taken as one list."""
    all_of_them = [p for group in optimizer.param_groups for p in group["params"]]
    for step in steps:
        for p, g in zip(all_of_them, gradients(step % 10, all_of_them), strict=True):
            p.grad = g if g is None else g.to(dtype or p.dtype)
        optimizer.step()
        optimizer.zero_grad()


def largest_difference(a: list[Parameter], b: list[Parameter]) -> float:
    return max(
        (x.double() - y.double()).abs().max().item() for x, y in zip(a, b, strict=True) if x.numel()
    )


def test_a_thousand_steps(impl: Impl) -> None:
    actual, baseline, truth = parameters(), parameters(), parameters(torch.float64)
    made: list[torch.optim.Optimizer] = [
        Adam(actual, 1e-3, BETAS, impl=impl),
        torch.optim.Adam(baseline, 1e-3, BETAS),
        torch.optim.Adam(truth, 1e-3, BETAS),
    ]
    for optimizer in made:
        train(optimizer, range(1000))
    assert largest_difference(actual, baseline) < 1e-6
    assert largest_difference(actual, truth) <= 2 * largest_difference(baseline, truth) + 1e-7
    for p, q in zip(actual[:4], baseline[:4], strict=True):
        assert p.stride() == q.stride()
        for name, value in made[1].state[q].items():
            off = made[0].state[p][name] - value
            assert off.abs().max() <= 4e-6 * value.abs().max()


def test_fp64() -> None:
    actual, baseline = parameters(torch.float64), parameters(torch.float64)
    train(Adam(actual, 1e-2, BETAS), range(50))
    train(torch.optim.Adam(baseline, 1e-2, BETAS), range(50))
    assert largest_difference(actual, baseline) < 1e-14


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_the_first_step_is_exact(impl: Impl, beta1: float) -> None:
    """1 - 0.999 in fp32 is wrong by 6e-5; the first update is lr * sign(g), to fp32's last bits."""
    p = Parameter(torch.zeros(3))
    p.grad = torch.tensor([1e-3, -4.0, 7.0])
    Adam([p], 1e-3, (beta1, 0.999), eps=0.0, impl=impl).step()
    torch.testing.assert_close(p.detach(), torch.tensor([-1e-3, 1e-3, -1e-3]), rtol=3e-7, atol=0)


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}])
def test_state_dicts_are_interchangeable_with_torch(impl: Impl, options: dict[str, bool]) -> None:
    straight = parameters()
    train(torch.optim.Adam(straight, 1e-3, BETAS), range(9))
    there = parameters()
    actual = Adam(there, 1e-3, BETAS, impl=impl)
    train(actual, range(3))
    baseline = torch.optim.Adam(there, 7.0, **options)
    baseline.load_state_dict(copy.deepcopy(actual.state_dict()))
    train(baseline, range(3, 6))
    again = Adam(there, 9.0, impl=impl)
    again.load_state_dict(baseline.state_dict())
    before = copy.deepcopy(baseline.state_dict()["state"])
    train(again, range(6, 9))
    assert largest_difference(there, straight) < 1e-6
    after = baseline.state_dict()["state"]
    assert all(torch.equal(before[i][k], after[i][k]) for i in before for k in before[i])
    keys = set(torch.optim.Adam(parameters()).param_groups[0])
    assert set(again.param_groups[0]) == keys == set(actual.param_groups[0])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_duplicate_is_independent(duplicate: Callable[[Any], Any]) -> None:
    original = parameters()
    copies = {original[3]: torch.empty(2500, dtype=torch.bfloat16)}
    adam = Adam(original, 1e-3, BETAS, working_copies=copies)
    train(adam, range(3))
    twin = duplicate(adam)
    others = twin.param_groups[0]["params"]
    train(twin, range(3, 6))
    assert largest_difference(original, others) > 1e-4
    train(adam, range(3, 6))
    assert largest_difference(original, others) == 0
    for p, other in ((original, adam), (others, twin)):
        assert torch.equal(other.working_copies[p[3]], p[3].bfloat16())


def scheduled(optimizer: torch.optim.Optimizer) -> None:
    """OneCycleLR moves rates and betas."""
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=40)
    for step in range(40):
        train(optimizer, range(step, step + 1))
        scheduler.step()


def halved(optimizer: torch.optim.Optimizer) -> None:
    """The rate, in a tensor or not, is halved after each step."""
    for step in range(4):
        train(optimizer, range(step, step + 1))
        group = optimizer.param_groups[0]
        if isinstance(group["lr"], Tensor):
            group["lr"].mul_(0.5)
        else:
            group["lr"] *= 0.5


def regrouped(optimizer: torch.optim.Optimizer) -> None:
    """Another group is added between two steps."""
    first = optimizer.param_groups[0]
    first["params"], others = first["params"][:2], first["params"][2:]
    train(optimizer, range(3))
    optimizer.add_param_group({"params": others, "lr": 1e-4, "betas": (0.3, 0.99)})
    train(optimizer, range(3, 9))


@pytest.mark.parametrize("lr", [1e-3, torch.tensor(1e-3)], ids=["number", "tensor"])
@pytest.mark.parametrize("use", [scheduled, halved, regrouped])
def test_rates_and_groups_that_change(
    impl: Impl, lr: float | Tensor, use: Callable[[torch.optim.Optimizer], None]
) -> None:
    actual, baseline = parameters(), parameters()
    use(Adam(actual, lr.clone() if isinstance(lr, Tensor) else lr, impl=impl))
    use(torch.optim.Adam(baseline, 1e-3))
    assert largest_difference(actual, baseline) < 1e-6


def test_torchs_gradient_scaler(impl: Impl) -> None:
    """An overflow skips the update, counts it, and halves the scale; all as with torch's fused."""
    outcomes = []
    for make in (
        lambda p: Adam(p, 1e-2, impl=impl),
        lambda p: torch.optim.Adam(p, 1e-2, fused=True),
    ):
        p = [Parameter(torch.linspace(-1, 1, 9)), Parameter(torch.ones(2))]
        optimizer = make(p)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for step in range(4):
            loss = (p[0] ** 2).sum() + p[1].prod() * (float("inf") if step == 2 else 1.0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        outcomes.append((p, optimizer.state[p[0]]["step"].item(), scaler.get_scale()))
        if isinstance(optimizer, Adam):
            assert optimizer.skipped == 1
    assert largest_difference(outcomes[0][0], outcomes[1][0]) < 1e-7
    assert outcomes[0][1:] == outcomes[1][1:] == (3.0, 512.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_working_copies_are_the_rounded_parameters(impl: Impl, dtype: torch.dtype) -> None:
    masters, plain = parameters(), parameters()
    copies = {p: torch.empty_like(p, dtype=dtype).requires_grad_() for p in masters[:4]}
    adam = Adam(masters, 1e-2, working_copies=copies, impl=impl)
    baseline = torch.optim.Adam(plain, 1e-2)
    for p, c in copies.items():
        assert torch.equal(c, p.to(dtype))
    for step in range(5):
        for p, q, g in zip(masters, plain, gradients(step, masters), strict=True):
            if p in copies:
                copies[p].grad = None if g is None else g.to(dtype)
            q.grad = None if g is None else g.to(dtype).float()
        adam.step()
        baseline.step()
        for p, c in copies.items():
            assert torch.equal(c, p.to(dtype))
    assert largest_difference(masters, plain) < 1e-6
    adam.zero_grad()
    assert all(c.grad is None for c in copies.values())
    with torch.no_grad():
        masters[0].add_(1)
    adam.refresh_working_copies()
    assert torch.equal(copies[masters[0]], masters[0].to(dtype))


def test_the_closures_loss_is_returned() -> None:
    p = Parameter(torch.ones(2))

    def closure() -> Tensor:
        loss = (p**2).sum()
        loss.backward()
        return loss

    assert Adam([p]).step(closure) == 2  # type: ignore[call-overload]
    assert (p < 1).all()


def test_a_compiled_iteration_may_step() -> None:
    actual, baseline = parameters()[:2], parameters()[:2]

    def iterate(p: list[Parameter], optimizer: torch.optim.Optimizer) -> None:
        sum((q**2).sum() for q in p).backward()  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad()

    adam, plain = Adam(actual, 1e-2), torch.optim.Adam(baseline, 1e-2)
    compiled = torch.compile(iterate, backend="eager")
    for _ in range(3):
        compiled(actual, adam)
        iterate(baseline, plain)
    assert largest_difference(actual, baseline) < 1e-7


ONE = Parameter(torch.ones(2, 3))


def copied(copy: Tensor, of: Tensor | None = None) -> Adam:
    return Adam([ONE], working_copies={ONE if of is None else of: copy})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Adam([ONE], -1.0), "lr must be >= 0, not -1.0"),
        (lambda: Adam([ONE], torch.ones(2)), "lr must be a number or an fp32 tensor of one el"),
        (lambda: Adam([ONE], betas=(0.5, 1.0)), r"betas must be two numbers in \[0, 1\)"),
        (lambda: Adam([ONE], eps=-1e-8), "eps must be >= 0, not -1e-08"),
        (lambda: Adam([{"params": [ONE], "weight_decay": 0.1}]), "weight_decay=0.1 in a group"),
        (lambda: Adam([ONE], impl="cuda").step(), "not 'cuda'"),  # type: ignore[arg-type]
        (lambda: Adam([ONE], impl="triton").step(), "impl='triton' needs CUDA tensors"),
        (lambda: Adam([Parameter(torch.ones(2, dtype=torch.half))]), "keep master weights as par"),
        (lambda: Adam([Parameter(torch.ones(4, 4)[:, :2])]), r"strides \(4, 1\), which leave gaps"),
        (lambda: Adam([Parameter(torch.ones(1).expand(4))]), "or share it"),
        (
            lambda: Adam([ONE, Parameter(torch.ones(2, device="meta"))]),
            "is torch.float32 on meta and the first of its group torch.float32 on cpu",
        ),
        (lambda: copied(torch.ones(2).half(), torch.ones(2)), "is no parameter of this optimizer"),
        (lambda: copied(torch.ones(2, 3)), "a working copy must be bfloat16 or float16"),
        (lambda: copied(torch.ones(3, 2).half().T), r"and strides \(3, 1\)"),
    ],
)
def test_invalid_arguments(make: Callable[[], Any], message: str) -> None:
    ONE.grad = torch.ones(2, 3)
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("option", ["weight_decay", "amsgrad", "maximize", "differentiable"])
def test_unsupported_options(option: str) -> None:
    baseline = torch.optim.Adam(parameters(), **{option: True})
    actual = Adam(parameters())
    before = actual.state_dict()
    with pytest.raises(InputError, match=f"this Adam has no {option}; use torch.optim.Adam"):
        actual.load_state_dict(baseline.state_dict())
    assert actual.state_dict() == before


def test_a_refused_group_is_not_added() -> None:
    adam = Adam([ONE])
    with pytest.raises(InputError):
        adam.add_param_group({"params": [Parameter(torch.ones(2))], "lr": -1.0})
    assert len(adam.param_groups) == 1


def test_invalid_gradients() -> None:
    p = Parameter(torch.ones(3, 2))
    low = torch.ones(3, 2, dtype=torch.bfloat16).requires_grad_()
    adam = Adam([p], working_copies={p: low})
    p.grad = low.grad = None
    p.grad = torch.eye(3, 2).to_sparse()
    with pytest.raises(InputError, match="gradients must be dense, not torch"):
        adam.step()
    p.grad, low.grad = torch.ones(3, 2), torch.ones(3, 2, dtype=torch.bfloat16)
    with pytest.raises(InputError, match="and its working copy both have a gradient"):
        adam.step()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_captured_step_counts_and_reads_its_rate() -> None:
    """Replays and eager steps in turn, with gradients that moved in between, are one history."""
    cuda = [Parameter(p.detach().cuda()) for p in parameters()]
    plain = parameters()
    lr = torch.tensor(1e-3, device="cuda")
    actual, baseline = Adam(cuda, lr), torch.optim.Adam(plain, 1e-3)
    static = [torch.zeros_like(p) for p in cuda]

    def give(step: int, where: list[Tensor]) -> None:
        for q, s, g in zip(plain, where, gradients(3 * step, plain), strict=True):
            q.grad = g
            s.copy_(g)

    for p, s in zip(cuda, static, strict=True):
        p.grad = s
    give(0, static)
    actual.step()
    baseline.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        actual.step()
    for step in range(1, 7):
        if step == 3:
            lr.mul_(0.5)
            baseline.param_groups[0]["lr"] *= 0.5
        if step % 2:
            give(step, static)
            graph.replay()
        else:
            moved = [torch.empty_like(p) for p in cuda]
            give(step, moved)
            for p, g in zip(cuda, moved, strict=True):
                p.grad = g
            actual.step()
        baseline.step()
    assert largest_difference([Parameter(p.detach().cpu()) for p in cuda], plain) < 1e-6
