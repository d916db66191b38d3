"""The promise to a newcomer: real digits, learned by one command."""

from pathlib import Path

import pytest

from fastinfogan.cli import main
from fastinfogan.engine import RunDirectory


@pytest.mark.slow
def test_three_hundred_iterations_put_the_digit_into_c1() -> None:
    assert main(["train", "mnist", "--iterations", "300", "--seed", "1", "--out", "run"]) == 0
    lines = list(RunDirectory.open(Path("run")).metrics())
    assert lines[-1]["iteration"] == 300
    assert lines[-1]["mi_c1"] >= 2.1
    assert lines[0]["mi_c1"] < 1.0
    assert 0.6 < lines[-1]["d_loss"] < 1.4  # neither of the two has won
