"""Launches and bytes of the experiments' chains, counted on any machine."""

import pytest
import torch

from fastinfogan import experiments
from fastinfogan.experiments import Experiment
from fastinfogan.kernels.inspect import walk
from fastinfogan.kernels.launch import Launch

BATCH = 128


def names(launches: list[Launch]) -> list[str]:
    return [launch.name.removesuffix("_kernel") for launch in launches]


def test_launches_of_the_mnist_trunk() -> None:
    """Forward: a product and a finalize per block, one pass at the end; backward: likewise."""
    parts = walk("mnist", batch=BATCH)
    assert names(parts["trunk"]) == [
        "image_block",
        "gather_gemm", "finalize_forward",
        "gather_gemm", "finish_splits", "finalize_forward",
        "materialize",
        "enter_gradient",
        "finalize_backward", "weight_gradient", "gather_gemm",
        "finalize_backward", "weight_gradient", "sum_splits", "gather_gemm",
        "finalize_backward", "image_weight_gradient", "sum_splits",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("part", "at_most"),
    [("trunk", 18), ("trunk of G", 19), ("generator", 25), ("d_head", 6), ("q_head", 11)],
)
def test_launches_of_mnist(part: str, at_most: int) -> None:
    assert len(walk("mnist", batch=BATCH)[part]) <= at_most


@pytest.mark.parametrize("name", experiments.BASES)
def test_no_pass_over_a_map_between_two_blocks(name: str) -> None:
    """Elementwise passes stand at a chain's ends, and where a row of features becomes a map."""
    parts = walk(name, batch=BATCH)
    for part in ("trunk", "trunk of G", "generator"):
        found = names(parts[part])
        turns = 1 if part == "generator" else 0
        assert found.count("materialize") <= 1
        assert found.count("enter_gradient") == 1 + turns
        assert found.count("form_gradient") == found.count("tile_statistics") == 0


def test_evaluation_is_a_product_per_block() -> None:
    trunk = names(walk("mnist", batch=BATCH, training=False)["trunk"])
    assert trunk == ["image_block", "gather_gemm", "gather_gemm", "finish_splits"]


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
    small = [each for each in trunk if each.name.startswith("finalize")]
    moved = sum(each.read + each.written for each in small)
    assert moved < 0.01 * sum(each.read + each.written for each in trunk)


def test_a_walk_runs_nothing() -> None:
    parts = walk("svhn", torch.float16, 8)
    tensors = [a for part in parts.values() for each in part for a in each.arguments]
    assert {t.device.type for t in tensors if isinstance(t, torch.Tensor)} == {"meta"}
