"""Collectives, counted by one process, against what the mathematics needs."""

import json
from dataclasses import replace

import pytest

from bench.counting.__main__ import main
from bench.counting.iteration import Collective, count
from fastinfogan import experiments
from fastinfogan.errors import InputError
from fastinfogan.networks import InfoGAN

MNIST = experiments.get("mnist")


def gathered(batch: int, ranks: int) -> list[int]:
    found = count(replace(MNIST, batch_size=batch), "bf16", ranks).collectives
    return [each.bytes for each in found if each.kind == "all_gather"]


def test_one_sum_a_phase_carries_all_gradients() -> None:
    found = count(replace(MNIST, batch_size=256), "bf16", 2, "per-rank").collectives
    assert [each.kind for each in found] == ["all_reduce"] * 2
    networks = InfoGAN(MNIST)
    parameters = sum(
        p.numel() for of in (networks.d_parameters(), networks.g_parameters()) for _, p in of
    )
    total = sum(each.bytes for each in found)
    assert 4 * parameters < total < 4.01 * parameters


def test_batch_norm_gathers_two_numbers_a_feature_whatever_the_batch() -> None:
    """The trunk's two layers, Q's one and the generator's three: forward and backward."""
    few = gathered(128, 2)
    assert gathered(4096, 64) == few
    # D step: the generator has a forward pass alone; real and generated images are two groups.
    # G step: all have both passes.
    d_step = 2 * (1024 + 6272 + 64) + 2 * 2 * 2 * (128 + 1024) + 2 * 2 * 128
    g_step = 2 * 2 * (1024 + 6272 + 64 + 128 + 1024 + 128)
    assert sum(few) == 4 * (d_step + g_step)


def test_a_batch_that_cannot_be_divided() -> None:
    with pytest.raises(InputError, match="cannot be shared equally by 3 ranks"):
        count(MNIST, "bf16", 3)
    assert count(MNIST, "fp32", 2).collectives[-1] == Collective("all_reduce", 26580564)


def test_the_command_counts_one_process_of_several(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["mnist", "--batch-size", "256"]
    assert main([*arguments, "--ranks", "2"]) == 0
    assert "mnist, batch 128, bf16, a rank of 2: one iteration" in (
        printed := capsys.readouterr().out
    )
    assert "collectives    23, 53,581,292 bytes of operands" in printed
    assert main([*arguments, "--ranks", "2", "--batch-norm", "per-rank", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["collectives"]) == 2
    assert main([*arguments, "--ranks", "0"]) == 2
    assert "--ranks must be 1 or more, not 0" in capsys.readouterr().err
