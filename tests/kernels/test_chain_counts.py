"""Launches and bytes of the experiments' chains, counted on any machine."""

import pytest
import torch

from bench.compiled import walk
from fastinfogan import experiments
from fastinfogan.experiments import Experiment
from fastinfogan_kernels.runtime.launch import Launch

BATCH = 128


def names(launches: list[Launch]) -> list[str]:
    return [launch.name.removesuffix("_kernel") for launch in launches]


def test_launches_of_the_mnist_trunk() -> None:
    """Forward a product per block and a pass; backward a pass and two products per block."""
    parts = walk("mnist", batch=BATCH)
    assert names(parts["trunk"]) == [
        "image_block", "implicit_gemm", "implicit_gemm", "materialize",
        "act_backward_reduce",
        "weight_gradient", "implicit_gemm",
        "weight_gradient", "implicit_gemm",
        "image_weight_gradient",
    ]  # fmt: skip


LAUNCHES = {
    "mnist": {"trunk": 10, "trunk of G": 11, "generator": 13, "d_head": 4, "q_head": 7},
    "svhn": {"trunk": 10, "trunk of G": 11, "generator": 16, "d_head": 4, "q_head": 7},
    "celeba": {"trunk": 10, "trunk of G": 11, "generator": 16, "d_head": 4, "q_head": 7},
    "faces": {"trunk": 10, "trunk of G": 11, "generator": 13, "d_head": 4, "q_head": 4},
    "chairs": {"trunk": 19, "trunk of G": 20, "generator": 22, "d_head": 4, "q_head": 4},
    "sprites": {"trunk": 15, "trunk of G": 16, "generator": 19, "d_head": 4, "q_head": 7},
}


@pytest.mark.parametrize("name", experiments.BASES)
def test_launches_of_every_part(name: str) -> None:
    parts = walk(name, batch=BATCH)
    del parts["around"]  # what stands around the networks; tests/test_iteration_counts.py
    assert {part: len(launches) for part, launches in parts.items()} == LAUNCHES[name]
    apart = {"bn_finalize_stats", "bn_finalize_grads"}
    assert not any(apart & set(names(launches)) for launches in parts.values())


@pytest.mark.parametrize("name", experiments.BASES)
def test_no_pass_over_a_map_between_two_blocks(name: str) -> None:
    """Elementwise passes stand at a chain's ends, and where a row of features becomes a map."""
    parts = walk(name, batch=BATCH)
    for part in ("trunk", "trunk of G", "generator"):
        found = names(parts[part])
        turns = 1 if part == "generator" else 0
        assert found.count("materialize") <= 1
        assert found.count("act_backward_reduce") == 1 + turns
        assert found.count("bn_backward_apply") == found.count("tile_statistics") == 0


def test_evaluation_is_a_product_per_block() -> None:
    trunk = names(walk("mnist", batch=BATCH, training=False)["trunk"])
    assert trunk == ["image_block", "implicit_gemm", "implicit_gemm"]


def minimum(e: Experiment, images: int) -> int:
    """Bytes of a trunk's forward and backward if every operand and result moved once per product.

    Maps are bf16, weights and their gradients fp32, real images uint8.
    """
    total, side, channels = 0, e.height, e.channels
    map_bytes = images * side * side * channels  # uint8
    for number, block in enumerate(e.trunk):
        if block.kind == "linear":
            weight, side_out = channels * side * side * block.channels, 1
        else:
            weight, side_out = channels * 16 * block.channels, side // block.stride
        out = images * side_out * side_out * block.channels * 2
        gradient = 2 * out if block.batch_norm else out  # g, and y beside it
        total += map_bytes + 4 * weight + out  # forward
        total += map_bytes + gradient + 4 * weight  # weight gradient
        if number > 0:
            total += gradient + 4 * weight + 2 * map_bytes  # data gradient; reads y, writes g
        side, channels, map_bytes = side_out, block.channels, out
    return total + 5 * map_bytes  # the ends: y to out; dout and y to g


@pytest.mark.parametrize("name", ["mnist", "svhn"])
def test_bytes_of_a_trunk_are_within_15_percent_of_the_minimum(name: str) -> None:
    trunk = walk(name, batch=BATCH)["trunk"]
    moved = sum(launch.read + launch.written for launch in trunk)
    assert moved <= 1.15 * minimum(experiments.get(name), 2 * BATCH)
    assert moved >= minimum(experiments.get(name), 2 * BATCH)


def test_statistics_cost_next_to_nothing() -> None:
    trunk = walk("chairs", batch=BATCH)["trunk"]
    named = [dict(zip(each.kernel.arg_names, each.arguments, strict=False)) for each in trunk]
    tiles = [each["tiles_ptr"] for each in named if each.get("tiles_ptr") is not None]
    assert len(tiles) == 5 + 6  # of blocks with batch norm; of gradients by all blocks
    moved = 2 * sum(each.nbytes for each in tiles)
    assert moved < 0.01 * sum(each.read + each.written for each in trunk)


def test_a_walk_runs_nothing() -> None:
    parts = walk("svhn", torch.float16, 8)
    tensors = [a for part in parts.values() for each in part for a in each.arguments]
    assert {t.device.type for t in tensors if isinstance(t, torch.Tensor)} == {"meta"}
