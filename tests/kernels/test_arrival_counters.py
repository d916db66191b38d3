"""Arrival counters: which launches share them, and which never do."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastinfogan_kernels.runtime import arrival_counters as module
from fastinfogan_kernels.runtime.arrival_counters import arrival_counters
from fastinfogan_kernels.runtime.launch import recording

GPU: Any = SimpleNamespace(device=torch.device("cuda", 0))
"""Stands in for a tensor on one."""


class Machine:
    """A GPU as far as arrival_counters see it.

    Attributes:
        stream: the current one.
        capturing: whether it is being captured.
    """

    def __init__(self) -> None:
        self.stream = 1
        self.capturing = False

    def current_stream(self, device: torch.device) -> SimpleNamespace:
        assert device == GPU.device
        return SimpleNamespace(cuda_stream=self.stream)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: made.capturing)
    monkeypatch.setattr(torch.cuda, "current_stream", made.current_stream)
    monkeypatch.setattr(module, "_of_stream", {})
    monkeypatch.setattr(module, "_pool", {})
    monkeypatch.setattr(module, "_pools", [])
    monkeypatch.setattr(module, "_POOL_SIZE", 256)
    monkeypatch.setattr(module, "_zeros", lambda n, _: torch.zeros(n, dtype=torch.int32))
    return made


def overlap(one: Tensor, other: Tensor) -> bool:
    one[:] = 7
    shared = bool((other == 7).any())
    one[:] = 0
    return shared


def test_launches_of_a_stream_share_a_buffer_which_grows(machine: Machine) -> None:
    first = arrival_counters(5, GPU)
    assert first.dtype == torch.int32
    assert arrival_counters(4096, GPU) is first
    larger = arrival_counters(len(first) + 1, GPU)
    assert len(larger) > len(first)
    assert not larger.any()
    assert arrival_counters(5, GPU) is larger


def test_streams_do_not_share(machine: Machine) -> None:
    one = arrival_counters(5, GPU)
    machine.stream = 2
    other = arrival_counters(5, GPU)
    assert not overlap(one, other)
    machine.stream = 1
    assert arrival_counters(5, GPU) is one


def test_captured_launches_share_with_nobody(machine: Machine) -> None:
    eager = arrival_counters(5, GPU)
    machine.capturing = True
    captured = [arrival_counters(33, GPU) for _ in range(3)]
    assert [len(t) for t in captured] == [33] * 3
    pool = module._pools[0].data_ptr()
    assert [t.data_ptr() - pool for t in captured] == [0, 256, 512]
    # What the pool lacks is the graph's own, zeroed whenever it is replayed.
    captured += [arrival_counters(200, GPU), arrival_counters(200, GPU)]
    every = [eager, *captured]
    for i, one in enumerate(every):
        assert not any(overlap(one, other) for other in every[i + 1 :])
    machine.capturing = False
    assert arrival_counters(5, GPU) is eager
    assert len(module._pool[GPU.device]) == 256, "replenished outside of the capture"
    assert pool == module._pools[0].data_ptr(), "and stays, for the graph has its address"


def test_a_capture_before_anything_ran_has_its_own(machine: Machine) -> None:
    machine.capturing = True
    one, other = arrival_counters(5, GPU), arrival_counters(5, GPU)
    assert not one.any()
    assert not overlap(one, other)
    assert not module._of_stream
    assert not module._pool


def test_recorded_launches_keep_nothing() -> None:
    before = dict(module._of_stream)
    with recording():
        meta = arrival_counters(9, torch.empty(1, device="meta"))
        fresh = arrival_counters(9, torch.empty(1))
    assert meta.device.type == "meta"
    assert len(meta) == len(fresh) == 9
    assert not fresh.any()
    assert module._of_stream == before
