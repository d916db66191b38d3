"""The whole iteration by the Triton kernels, against the reference, for the paper's five."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fastinfogan import experiments
from fastinfogan.engine.precision import ComputedIn
from fastinfogan.experiments import Experiment
from fastinfogan.reference import Reference
from tests.helpers.reference import step_reference, widen
from tests.helpers.training import make_iteration, narrow_experiment, watch_gradients

STEP = 5


def small(name: str) -> Experiment:
    """The experiment at a fraction of its widths; chairs of half their sides, too."""
    e = narrow_experiment(experiments.get(name), {"mnist": 16, "svhn": 16}.get(name, 32))
    if name != "chairs":
        return e
    generator = tuple(
        replace(b, height=b.height // 2, width=b.width // 2) if b.height else b for b in e.generator
    )
    return replace(e, height=e.height // 2, width=e.width // 2, generator=generator)


@pytest.mark.parametrize(
    ("name", "precision"),  # sprites is the same kinds of blocks, and a minute
    [*((name, "fp32") for name in experiments.EXPERIMENTS if name != "sprites"), ("mnist", "fp16")],
)
def test_an_iteration_is_the_references(name: str, precision: ComputedIn) -> None:
    """In fp32 losses and gradients err from the fp64 truth little more than torch's do.

    Weights follow by Adam, whose first step is the learning rate times the gradient's sign: at the
    reference's gradients it is tested by itself. The program reads its number from the counter on
    the device, and counts on. fp16 is compared with what its 11 bits allow.
    """
    experiment = small(name)
    rows = 8 if precision == "fp16" else 2  # batch norm of two rows magnifies what is rounded
    ours = make_iteration(experiment, batch_size=rows, precision=precision, impl="triton")
    scale, loose = 1.0, 0.0
    if ours.loss_scale:
        scale, loose = 64.0, 0.15
        ours.loss_scale.state[0] = scale
    theirs, truth = (Reference(experiment, 3, dtype) for dtype in (torch.float32, torch.float64))
    n = ours.networks
    for networks in ([n.generator, n.trunk, n.d_head, n.q_head], theirs.networks, truth.networks):
        widen(networks)
    ours.restored()
    seen: dict[object, list[Tensor]] = {ours: [], theirs: [], truth: []}
    watch_gradients(ours, lambda _, found: seen[ours].extend(g.double() / scale for g in found))
    for side in (theirs, truth):
        for adam in (side.d_adam, side.g_adam):

            def keep(adam: torch.optim.Optimizer, *_: object, side: object = side) -> None:
                # A copy: G's backward pass adds to D's gradients.
                seen[side] += [p.grad.double().clone() for p in adam.param_groups[0]["params"]]

            adam.register_step_pre_hook(keep)
    before = [p.detach().clone() for p in n.parameters() if p.requires_grad]
    ours.counter.fill_(STEP)
    with torch.no_grad():
        ours.program()
    assert ours.counter.item() == STEP + 1
    assert ours.step_counts.tolist() == [1, 0, 0]
    step_reference(theirs, ours, STEP)
    losses, _, bounds = step_reference(truth, ours, STEP)
    expected = torch.stack([t.detach() for t in (*losses, *bounds)])
    torch.testing.assert_close(ours.sums.double(), expected, rtol=1e-3, atol=1e-3 + loose)
    for mine, torchs, true in zip(*seen.values(), strict=True):
        error = (5e-3 + loose) * true.norm()
        assert (mine - true).norm() <= 2 * (torchs - true).norm() + error + 1e-9
    moved = zip(before, (p for p in n.parameters() if p.requires_grad), strict=True)
    assert all((old != new).any() for old, new in moved)
