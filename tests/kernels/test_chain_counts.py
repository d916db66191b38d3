"""Launches and bytes of the experiments' networks, as an iteration runs them, on any machine."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from bench.compiled import record, record_modules
from fastinfogan import experiments
from fastinfogan.experiments import Experiment
from fastinfogan_kernels.runtime.launch import Launch

BATCH = 128


@cache
def recorded(name: str) -> dict[str, list[Launch]]:
    return record(replace(experiments.get(name), batch_size=BATCH))


def names(launches: list[Launch]) -> list[str]:
    return [launch.name.removesuffix("_kernel") for launch in launches]


def test_launches_of_the_mnist_trunk() -> None:
    """Forward a product per block and a pass; backward a pass and two products per block."""
    forward = ["image_block", "implicit_gemm", "implicit_gemm", "materialize"]
    assert names(recorded("mnist")["D step trunk"]) == [
        *forward, "act_backward_reduce",
        "weight_gradient", "implicit_gemm", "weight_gradient", "implicit_gemm",
        "image_weight_gradient",
    ]  # fmt: skip
    assert names(recorded("mnist")["G step trunk"]) == [
        *forward, "act_backward_reduce", *["implicit_gemm"] * 3,
    ]  # fmt: skip


PARTS = ("D step trunk", "D step d_head", "D step q_head", "D step generator", "G step generator")
LAUNCHES = {
    "mnist": (10, 3, 6, 4, 13),
    "svhn": (10, 3, 6, 5, 16),
    "celeba": (10, 3, 6, 5, 16),
    "faces": (10, 3, 3, 4, 13),
    "chairs": (19, 3, 3, 7, 22),
    "sprites": (15, 3, 6, 6, 19),
}


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_launches_of_every_network(name: str) -> None:
    parts = recorded(name)
    assert tuple(len(parts[part]) for part in PARTS) == LAUNCHES[name]
    apart = {"bn_finalize_stats", "bn_finalize_grads"}
    assert not any(apart & set(names(launches)) for launches in parts.values())


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_no_elementwise_pass_between_two_blocks(name: str) -> None:
    """Elementwise passes stand at a chain's ends, and where a row of features becomes a map."""
    parts = recorded(name)
    for part in ("D step trunk", "G step trunk", "G step generator"):
        found = names(parts[part])
        turns = 1 if part == "G step generator" else 0
        assert found.count("materialize") <= 1
        assert found.count("act_backward_reduce") == 1 + turns
        assert found.count("bn_backward_apply") == found.count("tile_statistics") == 0


def test_evaluation_is_a_product_per_block() -> None:
    launches = record_modules(replace(experiments.get("mnist"), batch_size=BATCH))
    assert names(launches)[:3] == ["image_block", "implicit_gemm", "implicit_gemm"]
    assert "tile_statistics" not in names(launches)


def minimum(e: Experiment, images: int) -> int:
    """Bytes of a trunk's forward and backward if every operand and result moved once per product.

    As the D step trains it: images, feature maps, weights and their gradients are bf16.
    """
    total, side, channels = 0, e.height, e.channels
    map_bytes = 2 * images * side * side * channels
    for number, block in enumerate(e.trunk):
        if block.kind == "linear":
            weight, side_out = channels * side * side * block.channels, 1
        else:
            weight, side_out = channels * 16 * block.channels, side // block.stride
        out = images * side_out * side_out * block.channels * 2
        gradient = 2 * out if block.batch_norm else out  # g, and y beside it
        total += map_bytes + 2 * weight + out  # forward
        total += map_bytes + gradient + 2 * weight  # weight gradient
        if number > 0:
            total += gradient + 2 * weight + 2 * map_bytes  # data gradient; reads y, writes g
        side, channels, map_bytes = side_out, block.channels, out
    return total + 5 * map_bytes  # the ends: y to out; dout and y to g


@pytest.mark.parametrize("name", ["mnist", "svhn"])
def test_bytes_of_a_trunk_are_within_15_percent_of_the_minimum(name: str) -> None:
    trunk = recorded(name)["D step trunk"]
    moved = sum(launch.read + launch.written for launch in trunk)
    assert moved <= 1.15 * minimum(experiments.get(name), 2 * BATCH)
    assert moved >= minimum(experiments.get(name), 2 * BATCH)


def test_statistics_cost_next_to_nothing() -> None:
    trunk = recorded("chairs")["D step trunk"]
    named = [dict(zip(each.kernel.arg_names, each.arguments, strict=False)) for each in trunk]
    tiles = [each["tiles_ptr"] for each in named if each.get("tiles_ptr") is not None]
    assert len(tiles) == 5 + 6  # of blocks with batch norm; of gradients by all blocks
    moved = 2 * sum(each.nbytes for each in tiles)
    assert moved < 0.02 * sum(each.read + each.written for each in trunk)


def test_recording_runs_nothing() -> None:
    arguments = [a for part in recorded("svhn").values() for each in part for a in each.arguments]
    assert {a.device.type for a in arguments if isinstance(a, torch.Tensor)} == {"meta"}
