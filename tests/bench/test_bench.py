"""The bench itself: what is timed, how, and that nothing wrong is."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench.accuracy import MismatchError, check_accuracy, check_same_bits
from bench.baselines.iteration import UsualLoop, inputs_of
from bench.baselines.ops import Product
from bench.cases import Case, Planned, blocks, iteration, objective, ops
from bench.cases.shapes import layer_shapes
from bench.timing import interleaved
from bench.timing.clock import Clock, Run, Stretch
from bench.timing.interleaved import Interleaved, Spread, Times
from bench.timing.measure import measure
from bench.timing.roofline import Roofline
from bench.timing.rows import Row, lines, read, write
from fastinfogan import experiments
from fastinfogan.engine.network_step import OptimizerStep
from fastinfogan.errors import InputError
from fastinfogan.reference import Reference
from fastinfogan_kernels.conv_block import cpu_backend
from fastinfogan_kernels.conv_block.layers import aten_convolution, aten_gradients
from fastinfogan_kernels.philox import Stream
from tests.helpers.training import narrow_experiment

if TYPE_CHECKING:
    from fastinfogan.experiments import Experiment

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small sets, and no threads: they would wait for each other longer than they compute."""
    torch.set_num_threads(1)
    monkeypatch.setattr(iteration, "SET", 32)
    monkeypatch.setattr(ops, "IMAGES", 64)


def nothing() -> None:
    """Do nothing."""


class ScriptedStretch(Stretch):
    def __init__(self, name: str, seconds: Iterator[float], log: list[str]) -> None:
        super().__init__(nothing)
        self._name, self._seconds, self._log = name, seconds, log

    def seconds(self) -> float:
        self._log.append(self._name)
        return next(self._seconds)


class ScriptedClock(Clock):
    """A run is the seconds that it takes, round by round."""

    def __init__(self, scripts: dict[str, list[float]]) -> None:
        super().__init__(CPU)
        self._scripts = iter(scripts.items())
        self.log: list[str] = []

    def prepare(self, run: Run, *, steady: bool = False) -> Stretch:
        name, seconds = next(self._scripts)
        return ScriptedStretch(name, cycle(seconds), self.log)


def scripted(units: int = 1, **scripts: list[float]) -> tuple[Interleaved, ScriptedClock]:
    clock = ScriptedClock(scripts)
    return Interleaved(dict.fromkeys(scripts, nothing), clock, units=units), clock


def test_rounds_begin_with_the_next_implementation_and_are_compared_round_by_round() -> None:
    """A machine that slows down fourfold for all does not change a ratio."""
    pair, clock = scripted(ours=[1.0, 4.0, 1.0], eager=[2.0, 8.0, 2.0], best=[0.5, 2.0, 0.5])
    for _ in range(3):
        pair()
    assert clock.log == ["ours", "eager", "best", "eager", "best", "ours", "best", "ours", "eager"]
    assert pair.times.ratio("ours", "eager") == Spread(0.5, 0.5, 0.5)
    assert pair.times.ratio("ours", "best").median == 2.0
    assert pair.times.spread("ours") == Spread(1.0, 1.0, 2.5)
    pair.clear()
    assert pair.times.seconds["ours"] == ()


def test_times_are_of_one_unit() -> None:
    pair, _ = scripted(10, ours=[1.0], eager=[4.0])
    pair.time(4, 1e9)
    assert pair.times.spread("ours").median == 0.1
    assert len(pair.times.seconds["eager"]) == 4


def test_a_budget_ends_the_rounds_but_never_before_three(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(1000))
    monkeypatch.setattr(interleaved.time, "perf_counter", lambda: float(next(now)))
    for budget, expected in ((0.0, 3), (5.5, 8), (1e9, 15)):
        pair, _ = scripted(ours=[1.0], eager=[1.0])
        pair.time(15, budget)
        assert len(pair.times.seconds["ours"]) == expected


def test_one_slow_round_moves_no_median() -> None:
    times = Times({"ours": [1.0, 1.0, 9.0, 1.0, 1.0], "eager": [2.0] * 5})
    assert times.ratio("ours", "eager") == Spread(0.5, 0.5, 0.5)


def row(name: str = "adam, mnist", median: float = 2e-3, **more: Any) -> Row:  # noqa: ANN401
    spreads = {"fastinfogan": Spread(1e-3, median, 3e-3), "eager": Spread(3e-3, 4e-3, 5e-3)}
    ratios = {"eager": Spread(0.4, 0.5, 0.6)}
    return Row("ops", name, 15, spreads, ratios, "mnist", "bf16", 128, share=0.25, more=more)


def test_rows_come_back_and_replace_those_of_their_names(tmp_path: Path) -> None:
    roofline = Roofline(CPU, {"bf16": 3e11}, 1e10)
    write([row(), row("codes, mnist")], roofline, tmp_path, "machine")
    file = write([row(median=2.5e-3, values=3)], roofline, tmp_path, "machine")
    assert read(file) == [row(median=2.5e-3, values=3), row("codes, mnist")]
    kept = json.loads(file.read_text())
    assert kept["roofline"]["copy"] == 1e10
    assert kept["versions"]["torch"] == torch.__version__
    assert [each.name for each in tmp_path.iterdir()] == ["machine.json"]


@pytest.mark.parametrize("text", ["", "[]", '{"rows": [{"name": "x"}]}', '{"rows": 3}'])
def test_a_foreign_file_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    file = tmp_path / "machine.json"
    file.write_text(text)
    with pytest.raises(InputError, match=r"machine\.json: not a file of benchmark rows"):
        write([row()], Roofline(CPU), tmp_path, "machine")
    assert file.read_text() == text


def test_the_table_is_aligned_and_lists_what_is_missing() -> None:
    table = list(lines([
        row(aims={"eager": 0.4}),
        row("a much longer name", **{"left out": "compiled: a GPU's"}),
    ]))  # fmt: skip
    assert table[0].split() == ["ops", "fastinfogan", "of", "eager", "of", "the", "roofline"]
    assert table[1].index("2 ms") == table[2].index("2 ms")
    assert "0.500 (0.400 to 0.600)" in table[1]
    assert table[3:] == [
        "  not measured: compiled: a GPU's",
        "  above its aim: adam, mnist, 0.4 of eager",
        "",
    ]


def test_the_limit_of_accuracy() -> None:
    true = torch.linspace(-1, 1, 101, dtype=torch.float64)
    near, far = {"y": true + 1e-3}, {"y": true + 3e-3}
    check_accuracy(near, near, {"y": true}, torch.float32)
    with pytest.raises(MismatchError, match=r"y: off by 5\S+ of its size, PyTorch by 1\.7"):
        check_accuracy(far, near, {"y": true}, torch.float32)
    for wrong in ({"y": true * torch.nan}, {"z": true}, {}):
        with pytest.raises(MismatchError):
            check_accuracy(wrong, near, {"y": true}, torch.float32)
    spike = {"y": true.clone()}
    spike["y"][7] += 0.02
    with pytest.raises(MismatchError):
        check_accuracy(spike, near, {"y": true}, torch.float32)
    check_accuracy(spike, near, {"y": true}, torch.float32, kinks=True)
    check_same_bits(near, near)
    for wrong in (far, {}, {"y": near["y"].float()}):
        with pytest.raises(MismatchError):
            check_same_bits(wrong, near)


def never(*_: object) -> None:
    raise AssertionError("it was timed")


def refused(case: Case) -> None:
    """A case is measured in vain: its check fails, and no implementation runs."""
    with pytest.raises(MismatchError):
        measure(replace(case, run=never, baselines={"eager": never}), Roofline(CPU), timing=never)


def find(plans: list[Planned], start: str) -> Planned:
    (found,) = (plan for plan in plans if plan.name.startswith(start))
    return found


def test_a_wrong_gradient_of_the_likelihood_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = find(ops.planned(CPU, ["mnist"], ["fp32"], 16), "likelihood, mnist")
    plan.make(CPU).check()
    right = objective.likelihood_with_gradient

    def wrong(*arguments: Any, **named: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        values, gradient = right(*arguments, **named)
        return values, gradient * 1.001

    monkeypatch.setattr(objective, "likelihood_with_gradient", wrong)
    refused(plan.make(CPU))


@pytest.fixture
def wrong_batch_norm(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Plant a wrong coefficient of batch norm's gradient: the mean of g is left in."""
    right = cpu_backend.norm_activation_gradient

    def wrong(
        dout: Tensor,
        y: Tensor,
        params: Tensor,
        *rest: Any,  # noqa: ANN401
    ) -> tuple[Tensor, ...]:
        dy, dgamma, dbeta = right(dout, y, params, *rest)
        mean = dbeta / (dout.numel() // dbeta.numel())
        return dy + (0.5 * mean * params[0, 0]).to(dy.dtype), dgamma, dbeta

    return lambda: monkeypatch.setattr(cpu_backend, "norm_activation_gradient", wrong)


@pytest.mark.usefixtures("narrow_networks")
def test_a_wrong_gradient_of_batch_norm_is_not_timed(wrong_batch_norm: Callable[[], None]) -> None:
    layers = ops.planned(CPU, ["mnist"], ["fp32"], 16)
    plans = [
        find(layers, "batch norm + activation backward, mnist 32x7"),
        find(blocks.planned(CPU, ["mnist"], ["fp32"], 16), "generator"),
        find(iteration.planned(CPU, ["mnist"], ["fp32"], [16], ["eager"]), "mnist"),
    ]  # fmt: skip
    for plan in plans:
        plan.make(CPU).check()
    wrong_batch_norm()
    for plan in plans:
        refused(plan.make(CPU))


@pytest.mark.usefixtures("narrow_networks")
def test_an_update_that_is_not_adams_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = find(iteration.planned(CPU, ["mnist"], ["fp32"], [16], ["eager"]), "mnist")
    monkeypatch.setattr(OptimizerStep, "__call__", lambda *_: None)
    with pytest.raises(MismatchError, match="an update of a parameter of shape"):
        plan.make(CPU).check()


@pytest.mark.usefixtures("narrow_networks")
def test_all_operations_of_all_experiments_are_right_at_small_shapes() -> None:
    plans = ops.planned(CPU, batch=4)
    assert len({plan.name for plan in plans}) == len(plans)
    assert {plan.group for plan in plans} == {"ops"}
    assert any(plan.short for plan in plans)
    for plan in plans:
        case = plan.make(CPU)
        assert (case.group, case.name) == (plan.group, plan.name)
        case.check()
        for run in (case.run, *case.baselines.values()):
            run()


@pytest.mark.usefixtures("narrow_networks")
@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_the_baseline_of_products_at_the_shapes_of_all_layers(name: str) -> None:
    """Only a GPU has cases of products; what they are compared with runs anywhere."""
    for shape in layer_shapes(experiments.get(name), 2):
        geometry, size = shape.layer.geometry, shape.source
        x, dy = (torch.randn(shape.images, *each).double() for each in (size, shape.result))
        weight, bias = (torch.randn(n).double() for n in (shape.weight, shape.result[2]))
        dx, dw = aten_gradients(x, dy, weight, geometry, of_input=True, of_weight=True)
        y = aten_convolution(x, weight, bias, geometry)
        if geometry.flat:
            x, y, dx, dy = (t.flatten(1) for t in (x, y, dx, dy))
        else:
            x, y, dx, dy = (t.permute(0, 3, 1, 2) for t in (x, y, dx, dy))
        product = Product(geometry)
        torch.testing.assert_close(product.forward(x, weight, bias), y)
        torch.testing.assert_close(product.input_gradient(dy, x, weight), dx)
        torch.testing.assert_close(product.weight_gradient(dy, x, weight), dw)


@pytest.mark.usefixtures("narrow_networks")
@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_blocks_and_iterations_of_all_experiments_at_small_shapes(name: str) -> None:
    """Checked, run, and their FLOPs what torch counts of the baselines."""
    plans = blocks.planned(CPU, [name], ["fp32"], 4)
    plans += iteration.planned(CPU, [name], ["fp32"], [4], ["eager", "best"])
    assert [plan.name.split(",")[0] for plan in plans] == ["trunk", "generator", name]
    for plan in plans:
        case = plan.make(CPU)
        case.check()
        case.run()
        for run in case.baselines.values():
            run()
        with FlopCounterMode(display=False) as counted:
            case.baselines["best"]()
        assert counted.get_total_flops() == case.flops
        assert case.bytes > 0


def test_on_a_cpu_every_experiment_is_planned_at_batches_that_it_can_do() -> None:
    plans = iteration.planned(CPU)
    names = [plan.name for plan in plans]
    assert len(set(names)) == len(names)
    assert {name.split(",")[0] for name in names} == set(experiments.EXPERIMENTS)
    assert any(name.startswith("mnist, batch 512") for name in names)


@pytest.mark.parametrize("name", ["mnist", "svhn", "sprites"])
def test_the_baseline_loop_is_the_reference(name: str) -> None:
    """Its losses, bounds and weights, in fp64, after two iterations."""
    e: Experiment = narrow_experiment(experiments.get(name), 8)
    images = iteration.images_for(e, 64, CPU)
    loop, reference = UsualLoop(e, images, 8, seed=3, dtype=torch.float64), Reference(e, 3)
    for network in reference.networks:
        network.double()
    for step in range(2):
        inputs = inputs_of(e, images, 1, step, 8)
        found = loop.iterate(inputs)
        d, g = (e.latents.draw(1, step, stream, 8) for stream in (Stream.D_STEP, Stream.G_STEP))
        d_loss, d_bounds = reference.d_step(inputs.real.double(), d)
        g_loss, bounds = reference.g_step(g)
        losses = [d_loss + reference.weighted(d_bounds), g_loss + reference.weighted(bounds)]
        expected = torch.stack([*losses, *bounds]).detach()
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)
    for actual, expected in zip(loop.networks, reference.networks, strict=True):
        for one, other in zip(actual.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_pytest_bench_runs_a_case_and_keeps_its_row(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "bench/test_ops.py", "--short", "-q", "-p",
               "no:cacheprovider", "-k", "head and mnist and fp32", "--results",
               str(tmp_path)]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = tmp_path.iterdir()
    assert [each.key for each in read(file)] == [
        "ops/d head, mnist, fp32",
        "ops/q head, mnist, fp32",
    ]
    assert "2 rows in" in done.stdout
