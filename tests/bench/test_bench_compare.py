"""Deciding what regressed: made-up timings, noise and all, and counts with something planted."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bench.compare import counting, counts
from bench.compare.counts import Change, Permission, compare, read_allowed
from bench.compare.decide import BLOCK, FEWEST, conclude, judge
from fastinfogan.engine import Iteration
from fastinfogan.errors import InputError
from fastinfogan_kernels.conv_block import triton_chain

Times = NDArray[np.float64]
Noise = Callable[[np.random.Generator], Times]
ROUNDS = 32
TRIALS = 1200


def lasting(random: np.random.Generator, spread: float, memory: float) -> Times:
    """A machine whose speed wanders, each time by little."""
    steps = random.normal(0, spread * math.sqrt(1 - memory**2), 2 * ROUNDS)
    found = np.empty(2 * ROUNDS)
    found[0] = random.normal(0, spread)
    for i in range(1, 2 * ROUNDS):
        found[i] = memory * found[i - 1] + steps[i]
    return np.exp(found + random.normal(0, 0.01, 2 * ROUNDS))


def phases(random: np.random.Generator) -> Times:
    """Another tenant comes and goes, and stays for a few rounds."""
    busy = np.repeat(random.random(2 * ROUNDS // 8) < 0.5, 8)
    return np.where(busy, 1.5, 1.0) * np.exp(random.normal(0, 0.02, 2 * ROUNDS))


QUIET: dict[str, Noise] = {
    "gaussian": lambda random: np.exp(random.normal(0, 0.03, 2 * ROUNDS)),
    "drift": lambda random: (
        np.linspace(1, random.uniform(0.5, 2), 2 * ROUNDS)
        * np.exp(random.normal(0, 0.02, 2 * ROUNDS))
    ),
    "wandering": lambda random: lasting(random, 0.2, 0.99),
    "spikes": lambda random: np.where(
        random.random(2 * ROUNDS) < 0.02, 5.0, np.exp(random.normal(0, 0.01, 2 * ROUNDS))
    ),
    "phases": phases,
}
"""In which a slowdown of 10 % must be seen."""
LOUD: dict[str, Noise] = {
    "heavy tails": lambda random: 1 + 0.05 * np.abs(random.standard_t(1.2, 2 * ROUNDS)),
    "gaussian, 20 %": lambda random: np.exp(random.normal(0, 0.2, 2 * ROUNDS)),
    "two speeds": lambda random: np.where(random.random(2 * ROUNDS) < 0.5, 1.0, 1.3),
    "wandering fast": lambda random: lasting(random, 0.2, 0.9),
}
"""In which nobody could say; silence is asked for."""


def sides(noise: Noise, random: np.random.Generator, slower: float) -> tuple[Times, Times]:
    """One set of rounds: the two sides take their turns of one machine's noise."""
    taken = noise(random)
    i = np.arange(ROUNDS)
    first = 2 * i + i % 2
    return taken[first], taken[4 * i + 1 - first] * slower


def burst(base: Times, head: Times, random: np.random.Generator) -> None:
    """Up to half of the rounds, in a row, of one side."""
    length = int(random.integers(1, ROUNDS // 2 + 1))
    start = int(random.integers(0, ROUNDS - length + 1))
    side = (base, head)[int(random.integers(2))]
    side[start : start + length] *= random.uniform(1.1, 3)


def regressions(noise: Noise, slower: float, trials: int, *, bursts: bool = False) -> int:
    """How many of so many comparisons, each of one set of rounds or two, fail."""
    random = np.random.default_rng(1)

    def one_set() -> Any:  # noqa: ANN401
        base, head = sides(noise, random, slower)
        if bursts:
            burst(base, head, random)
        return judge(base, head)

    found = 0
    for _ in range(trials):
        first = one_set()
        second = one_set() if first.verdict == "slower" else None
        found += conclude(first, second) == "regression"
    return found


@pytest.mark.parametrize("bursts", [False, True], ids=["", "bursts"])
@pytest.mark.parametrize("noise", {**QUIET, **LOUD})
def test_noise_alone_fails_fewer_than_one_of_a_thousand(noise: str, bursts: bool) -> None:
    assert regressions({**QUIET, **LOUD}[noise], 1.0, TRIALS, bursts=bursts) < TRIALS / 1000


@pytest.mark.parametrize("noise", QUIET)
def test_ten_percent_is_caught_and_three_is_not(noise: str) -> None:
    assert regressions(QUIET[noise], 1.10, 200) >= 196
    assert regressions(QUIET[noise], 1.03, 500) == 0


def test_a_burst_of_one_set_is_not_confirmed() -> None:
    """All of one set on one side, as if regressed; the second set is quiet."""
    random = np.random.default_rng(2)
    base, head = sides(QUIET["gaussian"], random, 1.4)
    first = judge(base, head)
    assert first.verdict == "slower"
    second = judge(*sides(QUIET["gaussian"], random, 1.0))
    assert conclude(first, second) == "not confirmed"
    assert conclude(first, None) == "not confirmed"
    assert conclude(first, first) == "regression"


def test_faster_is_told() -> None:
    judged = judge(*sides(QUIET["gaussian"], np.random.default_rng(3), 0.8))
    assert conclude(judged, None) == "faster"
    assert judged.ratio is not None
    assert judged.ratio.median == pytest.approx(0.8, abs=0.02)


def test_sigma_of_noise_that_lasts_is_larger() -> None:
    """The same scatter of single rounds; what lasts for a block does not average out in it."""
    random = np.random.default_rng(4)
    base = np.ones(ROUNDS)
    noise = random.normal(0, 0.1, ROUNDS)
    independent = judge(base, np.exp(noise)).sigma
    lasts = judge(base, np.exp(np.repeat(noise[::BLOCK], BLOCK))).sigma
    assert independent is not None
    assert lasts is not None
    assert lasts > 1.4 * independent


def test_the_lower_quartile_must_agree() -> None:
    """Half of the time a quarter slower, the other half not: no verdict, however many rounds."""
    base = np.ones(400)
    head = np.where(np.arange(400) // BLOCK % 5 < 3, 1.25, 1.0)
    judged = judge(base, head)
    assert judged.ratio is not None
    assert judged.beyond is not None
    assert judged.ratio.median > 1 + judged.beyond
    assert judged.verdict == "same"


def test_few_rounds_are_no_verdict() -> None:
    few = FEWEST * BLOCK - 1
    judged = judge([1.0] * few, [2.0] * few)
    assert judged.verdict == "unclear"
    assert judged.note == f"{few} rounds are too few, {few + 1} are needed"
    assert judge([1.0] * (few + 1), [2.0] * (few + 1)).verdict == "slower"
    assert judge([], []).verdict == "unclear"
    with pytest.raises(ValueError, match="2 rounds of base, 1 of head"):
        judge([1.0, 1.0], [1.0])


@pytest.mark.parametrize("odd", [math.inf, math.nan, 0.0, -1.0])
def test_a_time_that_is_none_is_left_out_and_told(odd: float) -> None:
    base, head = [1.0] * 24, [1.0] * 24
    head[6] = odd
    judged = judge(base, head)
    assert judged.verdict == "same"
    assert judged.rounds == 23
    assert judged.note == f"1 of 24 rounds left out: round 7 took 1 s and {odd:g} s"


def of_an_iteration() -> dict[str, int]:
    """Mnist's, in bf16."""
    return dict(itertools.islice(counting._iterations(), 5))


def saved() -> dict[str, int]:
    """By mnist's chains, in bf16, on a GPU."""
    return dict(itertools.islice(counting._saved(), 5))


def in_g_step(extra: Callable[[Iteration], object]) -> Callable[[Iteration], Any]:
    step = Iteration.g_step

    def planted(self: Iteration) -> Any:  # noqa: ANN401
        found = step(self)
        extra(self)
        return found

    return planted


@pytest.mark.parametrize(
    ("extra", "grown"),
    [
        (lambda self: self.problems.add_(0), "launches of mnist in bf16"),
        (lambda self: torch.empty(1), "allocations of mnist in bf16"),
        (lambda self: float(self.problems), "host waits of mnist in bf16"),
    ],
    ids=["launch", "allocation", "wait"],
)
def test_something_planted_in_the_iteration_is_caught(
    monkeypatch: pytest.MonkeyPatch,
    extra: Callable[[Iteration], object],
    grown: str,
) -> None:
    before = of_an_iteration()
    monkeypatch.setattr(Iteration, "g_step", in_g_step(extra))
    compared = compare(before, of_an_iteration())
    assert grown in [each.name for each in compared.failures]
    assert not any("FLOPs" in each.name for each in compared.changes)


def test_a_tensor_saved_too_much_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    before, forward = saved(), triton_chain.forward

    def planted(*arguments: Any) -> Any:  # noqa: ANN401
        out, kept = forward(*arguments)
        return out, [*kept, torch.empty_like(out)]

    monkeypatch.setattr(triton_chain, "forward", planted)
    names = [each.name for each in compare(before, saved()).failures]
    assert len(names) == 5
    assert all(name.startswith("bytes saved by mnist's ") for name in names)


def test_any_growth_fails_and_less_is_told() -> None:
    base = {"launches": 58, "bytes": 1000, "gone": 1, "registers of a for sm_90": 98}
    head = {"launches": 57, "bytes": 1001, "new": 1, "registers of a for sm_90": 98}
    compared = compare(base, head)
    assert compared.failures == [Change("bytes", 1000, 1001)]
    assert compared.same == 1
    lines = compared.lines()
    assert lines[1].split() == ["1,000", "1,001", "bytes", "GREW"]
    assert lines[2].split() == ["58", "57", "launches"]
    assert "1 counts only in head, new for one" in lines
    assert "1 counts only in base, gone for one" in lines
    assert lines[-1] == "1 counts are equal, 2 differ, 1 grew without permission"


def test_a_permission_is_used_or_told_to_be_unused(tmp_path: Path) -> None:
    file = tmp_path / "allowed.toml"
    file.write_text(
        '[[allowed]]\ncount = "registers of implicit_gemm"\nreason = "wider tiles"\n'
        '[[allowed]]\ncount = "stack*"\nreason = "none"\n'
    )
    allowed = read_allowed(file, ["launches*"])
    base = {"registers of implicit_gemm for sm_90: block 64": 100, "launches of mnist in bf16": 58}
    compared = compare(base, {name: number + 1 for name, number in base.items()}, allowed)
    assert not compared.failures
    assert all(each.grew and each.allowed for each in compared.changes)
    assert compared.unused == (Permission("stack*", "none"),)
    assert any("allowed: wider tiles" in line for line in compared.lines())
    assert compare(base, {**base, "launches of mnist in bf16": 59}).failures
    for wrong in ('[[allowed]]\ncount = "x"\n', "[[allowed", 'allowed = 1\n[a]\nb = "c"'):
        file.write_text(wrong)
        with pytest.raises(InputError, match="not permissions"):
            read_allowed(file)
    assert read_allowed(tmp_path / "none.toml") == []


def test_the_recorded_permissions_can_be_read() -> None:
    assert all(each.reason for each in read_allowed())


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What the tree counts, made up."""
    found = {"launches": 58, "registers of a for sm_90": 98}
    monkeypatch.setattr(counting, "count_all", lambda: {"counts": found, "failed": {}})
    return found


def test_the_committed_counts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, counted: dict[str, int]
) -> None:
    file = tmp_path / "counts.json"
    arguments = ["--file", str(file)]
    assert counts.main(arguments) == 2
    assert "python -m bench.compare.counts --write" in capsys.readouterr().err
    assert counts.main([*arguments, "--write"]) == 0
    assert counts.main(arguments) == 0
    counted["launches"] = 57
    capsys.readouterr()
    assert counts.main(arguments) == 0
    assert "--write, and commit the file" in capsys.readouterr().out
    counted["registers of a for sm_90"] = 99
    assert counts.main(arguments) == 1
    assert "GREW" in capsys.readouterr().out
    written = json.loads(file.read_text())
    file.write_text(json.dumps({**written, "versions": {"torch": "2.13.0", "triton": "3.0"}}))
    assert counts.main(arguments) == 0
    assert "registers not compared: counts.json was written with" in capsys.readouterr().out


def test_the_committed_file_is_one() -> None:
    versions, committed = counts.read_committed()
    assert {"torch", "triton"} == versions.keys()
    assert committed["launches of mnist in bf16"] > 0
    assert committed["registers of implicit_gemm for sm_90"] > 0
