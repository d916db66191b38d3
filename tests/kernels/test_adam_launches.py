"""Adam's launches on a GPU, recorded and compiled without one; and its table of addresses."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from fastinfogan.errors import InputError
from fastinfogan.optim import Adam
from fastinfogan_kernels.adam.adam import Rates
from fastinfogan_kernels.adam.multi_tensor import AddressTable, Slot
from fastinfogan_kernels.conv_block.deferred import Deferred
from fastinfogan_kernels.conv_block.geometry import LINEAR, ConvGeometry, Window
from fastinfogan_kernels.conv_block.weight_grad import weight_gradient, weight_update
from fastinfogan_kernels.runtime.launch import Launch, recording
from tests.helpers import ahead

META: dict[str, Any] = {"device": "meta"}


def on_meta(*, scaled: bool = False) -> tuple[Adam, list[Parameter]]:
    shapes = ((1024, 6272), (128, 64, 4, 4), (1024,), ())
    ps = [Parameter(torch.empty(shape, **META)) for shape in shapes]
    adam = Adam(
        [{"params": ps[:3]}, {"params": ps[3:], "lr": torch.empty((), **META)}],
        copies={p: torch.empty_like(p, dtype=torch.bfloat16) for p in ps[:3]},
    )
    for p in ps:
        p.grad = torch.empty_like(p)
    if scaled:
        adam.found_inf = adam.grad_scale = torch.empty(1, **META)  # type: ignore[attr-defined]
    return adam, ps


def record_adam() -> list[Launch]:
    """What `ahead` compiles."""
    with recording() as launches:
        on_meta()[0].step()
        on_meta(scaled=True)[0].step()
    return launches


def test_a_group_is_one_launch_that_moves_each_value_once() -> None:
    launches = record_adam()
    assert [launch.name for launch in launches] == ["adam_kernel"] * 4
    elements = 1024 * 6272 + 128 * 64 * 16 + 1024
    table = launches[0].arguments[0].nbytes
    assert launches[0].read == elements * 16 + 3 * 4 + table
    assert launches[0].written == elements * 14 + 3 * 4
    assert table < elements * 16 / 1000
    assert launches[1].grid == (1,)


@pytest.mark.parametrize("target", ahead.TARGETS)
def test_the_launch_is_within_its_budget(target: str) -> None:
    """Loads and stores of 16 bytes: p, v, m, and g of three types; p, m, v, and two copies."""
    for each in ahead.compiled(target, "test_adam_launches", "record_adam"):
        assert each["stack"] == each["f64"] == each["ftz"] == 0
        assert each["registers"] <= 128
        if target != "gfx942":
            assert each["load_v4"] >= 4 * 4 + 2 * 2
            assert each["store_v4"] >= 3 * 4 + 2 * 2


def a_layer(
    rows: int, columns: int, kernel: int = 1
) -> tuple[Deferred, Deferred, Tensor, ConvGeometry]:
    """256 images in two groups: 128 real, 128 generated; bf16 maps, fp32 weight."""
    side = 14 if kernel > 1 else 1
    out = side // 2 if kernel > 1 else 1
    x = torch.empty((256, side, side, columns), dtype=torch.bfloat16, **META)
    y = torch.empty((256, out, out, rows), dtype=torch.bfloat16, **META)
    operand = Deferred(x, torch.empty((2, 3, columns), **META), 0.1)
    gradient = Deferred(y, torch.empty((2, 3, rows), **META), 1.0, torch.empty_like(y))
    if kernel == 1:
        return operand, gradient, torch.empty((rows, columns), **META), LINEAR
    weight = torch.empty((rows, columns, kernel, kernel), **META)
    gather = ConvGeometry(Window(side, side, kernel, 2, 1, 1), False)
    return operand, gradient, weight.to(memory_format=torch.channels_last), gather


def record_updates() -> list[Launch]:
    """Updates in the epilogues of MNIST's largest layer and, by split sums, of a convolution."""
    with recording() as launches:
        for operand, gradient, weight, gather in (a_layer(1024, 6272), a_layer(128, 64, 4)):
            p = Parameter(weight)
            adam = Adam([p], copies={p: torch.empty_like(p, dtype=torch.bfloat16)})
            weight_update(operand, gradient, *adam.epilogue_of(p), gather, 2)
    return launches


def test_bytes_that_an_epilogue_saves() -> None:
    """The gradient, fp32, is neither written nor read: 51 MB of 223 in MNIST's largest layer."""
    operand, gradient, weight, gather = a_layer(1024, 6272)
    p = Parameter(weight)
    adam = Adam([p], copies={p: torch.empty_like(p, dtype=torch.bfloat16)})
    with recording() as apart:
        p.grad = weight_gradient(operand, gradient, weight, gather, 2)
        adam.step()
    apart_bytes = sum(launch.read + launch.written for launch in apart)
    together = record_updates()[0]
    assert together.name == "weight_gradient_kernel"
    table = apart[1].arguments[0].nbytes + 2 * 4
    assert apart_bytes - together.read - together.written == 2 * 4 * weight.numel() + table
    assert 0.22 < 1 - (together.read + together.written) / apart_bytes < 0.24


@pytest.mark.parametrize("target", ahead.TARGETS)
def test_epilogues_are_within_their_budget(target: str) -> None:
    found = ahead.compiled(target, "test_adam_launches", "record_updates")
    assert [each["kernel"] for each in found] == [
        "weight_gradient_kernel", "weight_gradient_kernel",
    ]  # fmt: skip
    for each in found:
        assert each["stack"] == each["f64"] == each["ftz"] == 0
        assert each["registers"] <= 255
        if target != "gfx942":
            assert each["load_v4"] > 0


def test_an_epilogue_asks_for_a_weight_in_memory_order() -> None:
    operand, gradient, weight, gather = a_layer(128, 64, 4)
    moments = torch.empty_like(weight)
    step = torch.empty((), **META)
    plain = weight.contiguous()
    for slot in (
        Slot(plain, None, torch.empty_like(plain), torch.empty_like(plain), step),
        Slot(weight, None, moments, torch.empty_like(plain), step),
        Slot(weight.double(), None, moments, moments, step),
    ):
        with pytest.raises(InputError, match=r"a (weight|parameter) of shape .* cannot be updated"):
            weight_update(operand, gradient, slot, Rates(1e-3, 0.9, 0.999, 1e-8), gather, 2)


def test_tables_that_a_graph_reads_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was made in a capture is filled when the graph is replayed, and not before."""
    capturing = False
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    monkeypatch.setattr(AddressTable, "_on_device", lambda self, made, _: torch.from_numpy(made))
    monkeypatch.setattr(
        "fastinfogan_kernels.adam.multi_tensor._pinned", lambda size: torch.empty(size)
    )
    table = AddressTable(torch.device("cpu"))
    table._device = torch.device("cuda")
    p, m, v, step = torch.zeros(5), torch.zeros(5), torch.zeros(5), torch.zeros(())
    warm, static = (Slot(p, torch.ones(5), m, v, step) for _ in range(2))
    eager, chunks = table.of([warm])
    assert chunks == 1
    capturing = True
    assert table.of([warm])[0] is eager
    captured = table.of([static])[0]
    assert any(captured is kept for kept in table._kept)
    assert any(eager is kept for kept in table._kept)
    again = table.of([static])[0]
    capturing = False
    assert table.of([warm])[0] is eager
    after = table.of([static])[0]
    assert after is table.of([static])[0]
    assert len({id(t) for t in (eager, captured, again, after)}) == 4
    assert torch.equal(captured, after)
