"""The product against the reference: losses, gradients, ten iterations, from the same seed."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import pytest
import torch
from torch import Tensor

from fastinfogan import experiments
from fastinfogan.engine import Iteration
from fastinfogan.engine.config import ComputedIn, Information
from fastinfogan.experiments import Experiment
from fastinfogan.reference import Reference
from tests.helpers.reference import check_iteration, step_reference
from tests.helpers.training import make_iteration, narrow_experiment, watch_gradients

# Narrow enough for fp64 on two cores, with every table at full depth; MNIST also at full width.
CASES = [
    *((name, (), 8) for name in experiments.EXPERIMENTS),
    pytest.param("mnist", (), 1, marks=pytest.mark.slow),
    ("mnist", ("released",), 8),
    ("mnist", ("clipped-deviation", "normal-noise"), 8),
    ("chairs", ("research", "four-codes", "width"), 16),
]


def pairs(iteration: Iteration, reference: Reference) -> list[tuple[str, Tensor, Tensor]]:
    """Weights and batch-norm statistics of both, by the product's names."""
    actual = [(k, t) for k, t in iteration.networks.state_dict().items() if t.is_floating_point()]
    every = [t for network in reference.networks for t in network.state_dict().values()]
    expected = [t for t in every if t.is_floating_point()]
    return [(name, one, other) for (name, one), other in zip(actual, expected, strict=True)]


@pytest.mark.parametrize(("name", "variants", "divisor"), CASES)
def test_ten_iterations_of_weights_equal_the_reference(
    name: str, variants: tuple[str, ...], divisor: int
) -> None:
    experiment = narrow_experiment(experiments.get(name, variants), divisor)
    iteration = make_iteration(experiment, precision="fp64")
    reference = Reference(experiment, 3, torch.float64)
    for step in range(10):
        iteration.run(step)
        losses, _, g_bounds = step_reference(reference, iteration, step)
        expected = torch.stack([*losses, *g_bounds])
        torch.testing.assert_close(iteration.sums, expected, rtol=1e-8, atol=1e-8)
        iteration.read()
    for key, actual, expected in pairs(iteration, reference):
        torch.testing.assert_close(
            actual, expected, rtol=1e-6, atol=1e-8, msg=lambda m, k=key: k + m
        )


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_losses_and_gradients(name: str, precision: ComputedIn) -> None:
    experiment = narrow_experiment(experiments.get(name), 4)
    iteration = make_iteration(experiment, batch_size=32, precision=precision)
    # One activation rounded across a kink moves a gradient by a few 1e-4 of its norm, in either.
    autocast, tolerance = (None, 1e-3) if precision == "fp32" else (torch.bfloat16, 1e-2)
    check_iteration(iteration, 0, lambda: iteration.run(0), autocast=autocast, tolerance=tolerance)


def copy_state(iteration: Iteration, reference: Reference) -> None:
    """Give the reference the iteration's weights, statistics and Adam's moments."""
    for _, tensor, into in pairs(iteration, reference):
        into.data.copy_(tensor)
    reference.d_adam.load_state_dict(copy.deepcopy(iteration.d_adam.state_dict()))
    reference.g_adam.load_state_dict(copy.deepcopy(iteration.g_adam.state_dict()))


@pytest.mark.slow
@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_twenty_updates_in_fp32(name: str) -> None:
    """From the same state, an update's error against fp64 is that of the reference in fp32.

    The state is copied before each iteration: trajectories of their own would diverge from fp64 by
    chance further or less, as rounding decides the sign of small gradients, which Adam's first
    updates follow. And the median is taken, since one such sign may be an iteration's whole error.
    Measured with the instructions of SSE 4.1, of AVX2 and of the CPU: 0.4 to 1.16.
    """
    experiment = narrow_experiment(experiments.get(name), 4)
    iteration = make_iteration(experiment, batch_size=4)
    reference, truth = Reference(experiment, 3), Reference(experiment, 3, torch.float64)
    ratios: dict[str, list[float]] = {}
    for step in range(20):
        errors: dict[str, list[tuple[Tensor, Tensor]]] = {}
        copy_state(iteration, reference)
        copy_state(iteration, truth)
        iteration.run(step)
        step_reference(reference, iteration, step)
        step_reference(truth, iteration, step)
        both = zip(pairs(iteration, reference), pairs(iteration, truth), strict=True)
        for (key, actual, baseline), (_, _, exact) in both:
            kind = f"{key.split('.')[0]} {'statistics' if 'running' in key else 'weights'}"
            error = ((actual - exact).norm(), (baseline - exact).norm())
            errors.setdefault(kind, []).append(error)
        for kind, norms in errors.items():
            actual, baseline = torch.tensor(norms).norm(dim=0)
            ratios.setdefault(kind, []).append((actual / baseline).item())
    assert {kind for kind, found in ratios.items() if median(found) > 1.5} == set()


def test_bf16_follows_fp32() -> None:
    experiment = narrow_experiment(experiments.get("mnist"), 2)
    wide, narrow = (
        make_iteration(experiment, precision=p, batch_size=32) for p in ("fp32", "bf16")
    )
    for step in range(5):
        wide.run(step)
        narrow.run(step)
    one, other = wide.read(), narrow.read()
    for key in ("d_loss", "g_loss", "mi_bound"):
        assert other[key] == pytest.approx(one[key], abs=0.05)
    assert {p.dtype for p in narrow.networks.parameters()} == {torch.float32}


@pytest.mark.parametrize("information", ["maximise", "observe"])
def test_the_mi_term_trains_trunk_and_q_in_the_d_step_and_only_g_in_the_g_step(
    tiny: Experiment, information: Information
) -> None:
    """And not even G where Q observes: gradients of two iterations that differ in lambda only."""

    def gradients(scale: float) -> dict[str, Tensor]:
        iteration = make_iteration(
            replace(tiny, lambda_categorical=scale, lambda_continuous=scale),
            precision="fp64",
            information=information,
        )
        n = iteration.networks
        first = {name: t.clone() for name, t in n.state_dict().items()}
        named = {"D": n.d_parameters(), "G": n.g_parameters()}
        seen: dict[str, Tensor] = {}

        def keep(step: str, gradients: Sequence[Tensor]) -> None:
            for (name, _), gradient in zip(named[step], gradients, strict=True):
                seen[f"{step} {name}"] = gradient.clone()

        watch_gradients(iteration, keep)
        iteration.draw(0)
        iteration.d_step()
        n.load_state_dict(first)  # the same for both G steps
        iteration.g_step()
        return seen

    without, with_mi = gradients(0.0), gradients(1.0)
    changed = {key.split(".")[0] for key in with_mi if not torch.equal(with_mi[key], without[key])}
    observed = {"D trunk", "D q_head"}
    assert changed == (observed | {"G generator"} if information == "maximise" else observed)
    assert {key.split(".")[0] for key in with_mi} == observed | {"D d_head", "G generator"}
