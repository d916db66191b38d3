"""A new experiment is one entry: the one of docs/contributing.md is added and trained."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from fastinfogan import experiments
from fastinfogan.engine import RunDirectory
from fastinfogan.experiments import tables
from tests.helpers.training import QUICK, prints

DOCUMENT = Path(__file__).parents[1] / "docs" / "contributing.md"


def test_a_new_experiment_is_one_entry(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    section = DOCUMENT.read_text().partition("## Add an experiment")[2]
    recipe = re.search(r"```python\n(Entry\(.*?)```", section, re.DOTALL)
    entry = eval(recipe[1], vars(tables))
    monkeypatch.setitem(experiments.EXPERIMENTS, "toy", entry)
    monkeypatch.setattr("fastinfogan.data.synthetic.COUNT", 200)
    command = ["train", "toy", "--variant", "small-rate", "--iterations", "2", "--out", "run"]
    assert "toy in run: iterations 0 to 2" in prints(*command, *QUICK, capsys=capsys)
    run = RunDirectory.open(Path("run"))
    assert run.experiment == replace(experiments.get("toy", ["small-rate"]), batch_size=4)
    assert run.read_checkpoint().iteration == 2
    assert "toy: --variant" in prints("info", capsys=capsys)
