"""Adam's launches on a GPU, recorded and compiled without one, and its tables in captures."""

from typing import Any

import pytest
import torch
from torch.nn import Parameter

from fastinfogan.optim import Adam
from fastinfogan_kernels.adam.multi_tensor import AddressTable, TensorGroup
from fastinfogan_kernels.runtime.launch import Launch, recording
from tests.helpers import ahead

META: dict[str, Any] = {"device": "meta"}


def on_meta(*, scaled: bool = False) -> tuple[Adam, list[Parameter]]:
    shapes = ((1024, 6272), (128, 64, 4, 4), (1024,), ())
    ps = [Parameter(torch.empty(shape, **META)) for shape in shapes]
    adam = Adam(
        [{"params": ps[:3]}, {"params": ps[3:], "lr": torch.empty((), **META)}],
        working_copies={p: torch.empty_like(p, dtype=torch.bfloat16) for p in ps[:3]},
    )
    for p in ps:
        p.grad = torch.empty_like(p)
    if scaled:
        adam.found_inf = adam.grad_scale = torch.empty(1, **META)  # type: ignore[attr-defined]
    return adam, ps


def record_adam() -> list[Launch]:
    """Record what `ahead` compiles."""
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


def test_tables_that_a_graph_reads_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is made in a capture is written when the graph is replayed, and not before."""
    capturing = False
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    monkeypatch.setattr(AddressTable, "_to_device", lambda self, made, _: torch.from_numpy(made))
    monkeypatch.setattr(
        "fastinfogan_kernels.adam.multi_tensor._pinned", lambda size: torch.empty(size)
    )
    table = AddressTable(torch.device("cpu"))
    table._device = torch.device("cuda")
    p, m, v, step = torch.zeros(5), torch.zeros(5), torch.zeros(5), torch.zeros(())
    warm, static = (TensorGroup(p, torch.ones(5), m, v, step) for _ in range(2))
    eager, chunks = table.of([warm])
    assert chunks == 1
    capturing = True
    assert table.of([warm])[0] is eager
    captured = table.of([static])[0]
    assert any(captured is each for each in table._captured)
    assert any(eager is each for each in table._captured)
    again = table.of([static])[0]
    capturing = False
    assert table.of([warm])[0] is eager
    after = table.of([static])[0]
    assert after is table.of([static])[0]
    assert len({id(t) for t in (eager, captured, again, after)}) == 4
    assert torch.equal(captured, after)
