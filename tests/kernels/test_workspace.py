"""A program's memory: the same tensors at every run, shared where lives do not overlap."""

import pytest
import torch
from torch import Tensor

from bench.counting.iteration import allocations_recorded
from fastinfogan.engine.config import ComputedIn
from fastinfogan.experiments import Experiment
from fastinfogan_kernels.runtime import workspace
from fastinfogan_kernels.runtime.workspace import Workspace, empty, empty_like, zeros_like
from tests.helpers.training import make_iteration

CPU = torch.device("cpu")


def chain(rows: int = 8) -> list[Tensor]:
    """Three feature maps, of which two live at a time, a small tensor, and what is returned."""
    numbers = empty(3, torch.float32, CPU)
    features = empty((rows, 100), torch.float32, CPU)
    for _ in range(3):
        features = empty_like(features)
    return [features, numbers, zeros_like(numbers), empty_like(features.t(), torch.bfloat16)]


def test_the_same_tensors_at_every_run() -> None:
    memory = Workspace()
    with memory:
        first = chain()
    runs = []
    for _ in range(2):
        with memory:
            runs.append(chain())
    for a, b, like in zip(*runs, first, strict=True):
        assert a.data_ptr() == b.data_ptr()
        assert (a.shape, a.stride(), a.dtype) == (like.shape, like.stride(), like.dtype)
    assert torch.equal(runs[1][2], torch.zeros(3))


def test_lives_that_do_not_overlap_share_memory_and_others_do_not() -> None:
    memory = Workspace()
    for _ in range(2):
        with memory:
            found = chain()
    blocks = {t.data_ptr() for t in memory._tensors}
    # Four feature maps in two blocks, of which the 16-bit one takes a free one; numbers and zeros
    # have one each.
    assert len(memory._tensors) == 7
    assert len(blocks) == 4
    for i, tensor in enumerate(found):
        tensor.fill_(i)
    assert [t.float().unique().tolist() for t in found] == [[0.0], [1.0], [2.0], [3.0]]


def test_another_program_gets_other_tensors_and_then_its_own() -> None:
    memory = Workspace()
    for _ in range(2):
        with memory:
            before = chain()
    with memory:
        other = chain(16)
    assert [t.shape for t in other] != [t.shape for t in before]
    again = []
    for _ in range(3):
        with memory:
            again.append(chain(16))
    assert again[1][0].data_ptr() == again[2][0].data_ptr()


def test_a_run_that_fails_is_not_taken_for_the_program() -> None:
    memory = Workspace()

    def fail() -> None:
        with memory:
            chain()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not memory._known
    with memory:
        chain()
    assert memory._known
    assert empty(3, torch.float32, CPU).data_ptr() != memory._tensors[0].data_ptr()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_is_the_same_with_and_without(
    tiny: Experiment, precision: ComputedIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit; and with it nothing is made any more after the first iteration."""
    iteration = make_iteration(tiny, precision=precision)
    iteration.run(0)
    with allocations_recorded() as made:
        for step in range(1, 4):
            iteration.run(step)
    assert made == []
    monkeypatch.setattr(workspace, "_active", workspace.ContextVar("unused", default=None))
    monkeypatch.setattr(Workspace, "__enter__", lambda self: self)
    monkeypatch.setattr(Workspace, "__exit__", lambda self, *_: None)
    plain = make_iteration(tiny, precision=precision)
    with allocations_recorded() as made:
        for step in range(4):
            plain.run(step)
    assert len(made) > 20
    for kind, tensors in iteration.state().items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, plain.state()[kind][name]), name
