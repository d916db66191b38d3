"""`bench.parity`: its findings in synthetic trajectories, and real ones of a wrong gradient."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.parity import configs
from bench.parity.__main__ import main
from bench.parity.statistics import MARGIN, NEGLIGIBLE, Analysis, analyse, holm
from fastinfogan.engine import network_step
from fastinfogan.errors import InputError
from fastinfogan.experiments import Experiment
from fastinfogan_kernels.conv_block import cpu_backend
from tests.helpers.training import fails

NAMES = ("d_loss", "g_loss", "mi_c1")
NOTHING = "no difference detected; equivalence within 0.05 nats shown for d_loss, g_loss, mi_c1"
OPTIONS = ["--iterations", "12", "--seeds", "5", "--batch-size", "16", "--precision", "fp32"]

Values = NDArray[np.float64]


def made_up(seed: int, seeds: int = 5, iterations: int = 200) -> list[Values]:
    """Reference, engine and rounded: at first apart by 1e-5, then as chance has it."""
    random = np.random.default_rng(seed)
    shape = (seeds, iterations, len(NAMES))
    trend = np.linspace(0, 1, iterations)[:, None] + random.normal(0, 0.05, (seeds, 1, 3))
    grows = np.minimum(1e-5 * 1.3 ** np.arange(iterations), 0.05)[:, None]
    base = trend + random.normal(0, 0.05, shape)
    engine, rounded = (base + grows * random.normal(0, 1, shape) for _ in range(2))
    return [base, engine, rounded[:, :16]]


def analysed(reference: Values, engine: Values, rounded: Values, may_skip: float = 0.0) -> Analysis:
    return analyse(reference, engine, {"fp32": (engine, rounded)}, NAMES, may_skip)


def test_the_same_distribution_is_no_difference() -> None:
    found = analysed(*made_up(1))
    assert found.verdict == NOTHING
    assert all(d.equivalent and d.low < d.difference < d.high for d in found.whole)
    assert found.skipped == {"reference": 0, "engine": 0}
    assert [(d.quantity, d.end) for d in found.early[:3]] == [(name, 16) for name in NAMES]
    assert [(d.first, d.end) for d in found.early[3:]] == [(0, 1), (1, 2), (2, 4), (4, 8), (8, 16)]
    assert [(w.first, w.end) for w in found.windows[:2]] == [(0, 20), (20, 40)]


def test_a_correct_engine_is_seldom_reported_as_different() -> None:
    """In 5 % of reports at the most; three seeds are no exception."""
    for seeds in (3, 5):
        different = sum(analysed(*made_up(k, seeds)).verdict != NOTHING for k in range(60))
        assert different <= 5


@pytest.mark.parametrize("name", NAMES)
def test_a_shift_is_found_and_named(name: str) -> None:
    reference, engine, rounded = made_up(2)
    engine[:, 100:, NAMES.index(name)] += 0.1
    found = analysed(reference, engine, rounded)
    assert {d.quantity for d in (*found.whole, *found.windows) if d.p < 0.01} == {name}
    assert found.verdict.startswith(f"difference detected: {name} by +0.0")
    assert "iterations 1 to 200" in found.verdict
    assert not any(other in found.verdict for other in NAMES if other != name)


def test_a_negligible_difference_is_none_however_sure_it_is() -> None:
    reference, _, rounded = made_up(3)
    shifts = {NEGLIGIBLE * 0.9: NOTHING, NEGLIGIBLE * 1.1: "difference detected: "}
    for shift, verdict in shifts.items():
        engine = reference + shift
        engine[:, :16] = reference[:, :16]
        assert analysed(reference, engine, rounded).verdict.startswith(verdict)


def test_equivalence_is_stated_only_where_the_interval_shows_it() -> None:
    reference, engine, rounded = made_up(4, seeds=3)
    engine[0, 20:] += 0.3  # in one seed of three: by chance, for all we know
    found = analysed(reference, engine, rounded)
    assert (
        found.verdict
        == "no difference detected; equivalence within 0.05 nats shown for no quantity"
    )
    assert not any(d.equivalent for d in found.whole)
    assert all(d.detectable > 10 * MARGIN for d in found.whole)


def test_a_departure_beyond_rounding_is_found_at_once() -> None:
    reference, engine, rounded = made_up(5)
    engine[:, 1:, 2] += 1e-3
    found = analysed(reference, engine, rounded)
    assert next(d.quantity for d in found.early if d.p < 0.01) == "mi_c1"
    assert found.verdict.startswith("difference detected: in fp32 mi_c1 ")
    assert "times as far apart as by rounding, iterations 1 to 16" in found.verdict


def test_skipped_iterations_are_reported() -> None:
    reference, engine, rounded = made_up(6)
    engine[1, 50:53] = np.nan
    found = analysed(reference, engine, rounded)
    assert found.verdict == "difference detected: 3 iterations of the engine were not finite"
    assert analysed(reference, engine, rounded, may_skip=0.01).verdict == NOTHING
    engine[1, 40:] = np.nan  # whole windows of a seed
    found = analysed(reference, engine, rounded, may_skip=0.01)
    assert "160 iterations of the engine" in found.verdict
    assert np.isnan(found.windows[5].p)


@pytest.mark.parametrize(("seeds", "iterations"), [(2, 200), (5, 9)])
def test_too_little_to_compare(seeds: int, iterations: int) -> None:
    with pytest.raises(InputError, match="are needed"):
        analysed(*made_up(1, seeds, iterations))


def test_holm() -> None:
    assert holm([0.01, 0.04, np.nan, 0.03]) == pytest.approx(
        [0.03, 0.06, np.nan, 0.06], nan_ok=True
    )
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report that the tests share."""
    return tmp_path_factory.mktemp("parity") / "out"


@pytest.fixture
def parity(
    finished: Path, narrow_networks: None, digits: str, capsys: pytest.CaptureFixture[str]
) -> Callable[[Path], tuple[int, str]]:
    """The command on narrow networks: its exit code, and what it prints."""

    def run(out: Path, *more: str) -> tuple[int, str]:
        capsys.readouterr()
        torch.set_num_threads(1)  # so narrow, a second one is waited for more than it helps
        code = main([*OPTIONS, "--data", digits, "--out", str(out), *more])
        return code, capsys.readouterr().out

    if not finished.exists():
        assert run(finished)[0] == 0
    return run


def test_the_report(finished: Path, parity: Callable[..., tuple[int, str]]) -> None:
    code, printed = parity(finished)
    assert code == 0
    assert "\nverdict: no difference detected; equivalence within 0.05 nats shown for " in printed
    code, printed = parity(finished, "--json")
    found = json.loads(printed)
    assert found == json.loads((finished / "parity.json").read_text())
    assert code == 0
    assert not found["difference_detected"]
    assert found["verdict"].endswith(", ".join(found["equivalent"]))
    assert found["settings"]["seeds"] == [1, 2, 3, 4, 5]
    assert [d["quantity"] for d in found["whole"]] == [
        "d_loss",
        "g_loss",
        "mi_c1",
        "mi_c2",
        "mi_c3",
    ]
    assert len(found["windows"]) == 50
    assert all(d["ratio"] < 6 for d in found["early"])
    assert (finished / "parity.png").read_bytes().startswith(b"\x89PNG")
    assert not list(finished.glob(".*"))


def test_saved_trajectories_can_be_analysed_anew(
    finished: Path, parity: Callable[..., tuple[int, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path("again")
    shutil.copytree(finished, out)
    before = json.loads((out / "parity.json").read_text())
    (out / "parity.json").write_text(json.dumps({**before, "verdict": "", "whole": []}))
    assert main(["--reanalyse", "--out", str(out)]) == 0
    assert before["verdict"] in capsys.readouterr().out
    assert json.loads((out / "parity.json").read_text()) == before
    (out / "engine-2.npz").write_bytes(b"")
    assert "has no whole trajectories" in fails(
        "--reanalyse", "--out", str(out), capsys=capsys, command=main
    )
    assert "no report" in fails("--reanalyse", "--out", "none", capsys=capsys, command=main)


def weight_of_c1(patched: pytest.MonkeyPatch) -> None:
    true = Experiment.lambdas.fget

    def wrong(experiment: Experiment) -> list[float]:
        first, *others = true(experiment)
        return [1.03 * first, *others]

    patched.setattr(Experiment, "lambdas", property(wrong))


def q_heads_gradient(patched: pytest.MonkeyPatch) -> None:
    true = network_step.QHeadStep.backward
    patched.setattr(network_step.QHeadStep, "backward", lambda self: 1.03 * true(self))


def batch_norms_gradient(patched: pytest.MonkeyPatch) -> None:
    """The term with the normalised activations is 3 % too small."""
    true = cpu_backend._norm_gradient

    def wrong(source: Any) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:  # noqa: ANN401
        def gradient(
            dout: Tensor, y: Tensor, params: Tensor, gamma: Tensor, activation: str, slope: float
        ) -> tuple[Tensor, Tensor, Tensor]:
            dy, dgamma, dbeta = true(source)(dout, y, params, gamma, activation, slope)
            scale, shift, mean, rstd = (each[:, None] for each in params.unbind())
            values = y.view(params.shape[1], -1, y.shape[-1])
            g = dout.view(values.shape) * torch.where(scale * values + shift > 0, 1.0, slope)
            normalised = (values - mean) * rstd
            missing = 0.03 * scale * normalised * (g * normalised).mean(1, keepdim=True)
            return dy + missing.view(y.shape), dgamma, dbeta

        return gradient

    patched.setattr(cpu_backend, "_norm_gradient", wrong)


@pytest.mark.parametrize("plant", [weight_of_c1, q_heads_gradient, batch_norms_gradient])
def test_a_wrong_gradient_is_caught(
    plant: Callable[[pytest.MonkeyPatch], None],
    finished: Path,
    parity: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = Path("wrong")
    shutil.copytree(finished, out, ignore=shutil.ignore_patterns("engine*"))
    plant(monkeypatch)
    code, printed = parity(out)
    assert code == 1
    assert "verdict: difference detected: " in printed
    assert "times as far apart as by rounding, iteration" in printed


@pytest.mark.slow
def test_in_bf16_the_engine_is_compared_in_fp32_too(
    finished: Path, parity: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There a wrong gradient of 3 % is found that bf16 hides."""
    out = Path("bf16")
    shutil.copytree(finished, out, ignore=shutil.ignore_patterns("engine*", "rounded*"))
    code, printed = parity(out, "--precision", "bf16")
    assert code == 0
    assert "in bf16 and in fp32" in printed
    for file in out.glob("engine*"):
        file.unlink()
    q_heads_gradient(monkeypatch)
    code, printed = parity(out, "--precision", "bf16")
    assert code == 1
    assert "difference detected: in fp32 " in printed


def test_an_interrupted_report_resumes(
    finished: Path, parity: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[str, int]] = []

    def start(self: configs.Setup, config: configs.Config, seed: int) -> configs.Step:
        trained.append((config, seed))
        step = true(self, config, seed)

        def interrupted(number: int) -> Any:  # noqa: ANN401
            if stop and (config, seed, number) == ("engine", 2, 6):
                raise KeyboardInterrupt
            return step(number)

        return interrupted

    true, stop = configs.Setup.start, True
    monkeypatch.setattr(configs.Setup, "start", start)
    out = Path("goes-on")
    shutil.copytree(finished, out)
    for file in out.glob("*-2.npz"):
        file.unlink()
    before = [file.read_bytes() for file in sorted(out.glob("*-[1345].npz"))]
    assert parity(out)[0] == 130
    assert (out / "reference-2.npz").exists()
    assert not (out / "engine-2.npz").exists()
    stop = False
    assert parity(out)[0] == 0
    assert trained == [("reference", 2), ("engine", 2), ("engine", 2), ("rounded", 2)]
    assert [file.read_bytes() for file in sorted(out.glob("*-[1345].npz"))] == before
    for config in ("reference", "engine", "rounded"):
        resumed, whole = (
            np.load(folder / f"{config}-2.npz")["values"] for folder in (out, finished)
        )
        np.testing.assert_array_equal(resumed, whole)
    assert not list(out.glob(".*"))


@pytest.mark.parametrize(
    ("options", "printed"),
    [
        (["--seeds", "2"], "--seeds must be 3 to 100, not 2"),
        (["--iterations", "9"], "--iterations must be 10 to"),
        (["--batch-size", "1"], "--batch-size must be 2 or more"),
        (["--experiment", "mnst"], "mnst"),
        (["--execution", "graph", "--device", "cpu"], "--execution graph replays CUDA graphs"),
        (["--data", "nowhere.npz"], "nowhere.npz: no such file or folder"),
        (["--data", "pictures"], "pictures that are yet to be decoded"),
        (["--out", "digits.npz"], "digits.npz: a file, where a folder is needed"),
        (["--out", "pictures"], "pictures: holds files of something else, one.png for one"),
    ],
)
def test_bad_input(
    options: list[str], printed: str, digits: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    Path("pictures").mkdir()
    Image.new("L", (28, 28)).save("pictures/one.png")
    given = ["--data", digits, "--out", "out", *options]
    assert printed in fails(*given, capsys=capsys, command=main)
    assert not Path("out").exists()


def test_a_folder_of_another_report(
    finished: Path, parity: Callable[..., tuple[int, str]], digits: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = Path("other")
    shutil.copytree(finished, out)
    command = [*OPTIONS, "--data", digits, "--out", str(out)]
    error = fails(*command, "--iterations", "14", capsys=capsys, command=main)
    assert (
        "reference-1.npz: a trajectory of other settings, settings.iterations: 12 and 14" in error
    )
    error = fails(*command, "--precision", "bf16", capsys=capsys, command=main)
    assert "engine-1.npz: a trajectory of other settings, settings.precision" in error
    with monkeypatch.context() as patched:
        patched.setattr(configs, "code", lambda: "code of another day")
        error = fails(*command, capsys=capsys, command=main)
        assert "settings.code" in error
        assert "delete it to have it trained again" in error
    whole = (out / "engine-3.npz").read_bytes()
    for damaged in (whole[:100], whole[:-100], b"", np.random.default_rng(1).bytes(1000)):
        (out / "engine-3.npz").write_bytes(damaged)
        assert "engine-3.npz: not a whole trajectory" in fails(
            *command, capsys=capsys, command=main
        )
