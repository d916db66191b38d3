"""Products finalized in their own launch: tiles merged, splits added, arrival counters reset."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.accuracy import check_same_bits
from fastinfogan_kernels.conv_block import bn_stats
from fastinfogan_kernels.conv_block.autograd import fused_chain
from fastinfogan_kernels.conv_block.bn_stats import (
    BatchNormBackward,
    BatchNormForward,
    merge_tiles,
    mergeable,
)
from fastinfogan_kernels.conv_block.deferred import Deferred, TileStatistics
from fastinfogan_kernels.conv_block.implicit_gemm import Epilogue, launch_implicit_gemm
from fastinfogan_kernels.conv_block.launch_table import Choice, GemmTile, using_table
from fastinfogan_kernels.conv_block.layers import Images, Layer
from fastinfogan_kernels.conv_block.weight_grad import launch_weight_gradient
from fastinfogan_kernels.runtime import arrival_counters
from fastinfogan_kernels.runtime.launch import Launch, recording
from tests.helpers.chain_cases import LINEAR, Case, conv, outcome, upconv

Draw = Callable[..., Tensor]
FP32 = (torch.float32, torch.float32)
SMALL = GemmTile(16, 16, 16, splits=3)
"""Several tiles and splits even of small feature maps."""
CASES = {
    "two groups, odd sizes": Case(
        (Layer(conv(5, 1, 1, (0, 0)), True, slope=0.2), Layer(conv(5, 3, 2), True)),
        (5, 19, 37), 5, 10, 2,
    ),
    "features once for each pixel": Case(
        (Layer(conv(8), True), Layer(LINEAR, True)), (3, 16, 20), 8, 10, 2
    ),
    "biases once for each pixel": Case(
        (Layer(conv(8), False), Layer(LINEAR, False, "tanh")), (3, 16, 20), 8, 10, 2
    ),
    "rows become feature maps": Case(
        (
            Layer(LINEAR, True, slope=0.0, shape=(2, 2, 18)),
            Layer(upconv(2), True, slope=0.0),
            Layer(upconv(4), False, "sigmoid"),
        ),
        (9, 18, 10, 1), 0, 18,
    ),
    "rows": Case((Layer(LINEAR, True), Layer(LINEAR, False, "none")), (40, 18, 14), 0, 36, 2),
}  # fmt: skip


def arguments(launch: Launch) -> dict[str, Any]:
    return dict(zip(launch.kernel.arg_names, launch.arguments, strict=False))


def run(case: Case, device: torch.device) -> tuple[dict[str, Tensor], list[Launch]]:
    with using_table({"*": Choice("gemm", SMALL)}), recording(run=True) as launches:
        found = outcome(fused_chain, case, *FP32, device=device)
    taken = [t for each in launches if (t := arguments(each).get("counters_ptr")) is not None]
    assert len(taken) > 1
    assert not any(t.any() for t in taken), "arrival counters are reset"
    return found, launches


def names(launches: list[Launch]) -> set[str]:
    return {launch.name for launch in launches}


APART = {"bn_finalize_stats_kernel", "bn_finalize_grads_kernel"}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_merged_or_apart_is_the_same_to_the_last_bit(
    name: str, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    together, launches = run(CASES[name], device)
    monkeypatch.setattr(bn_stats, "MAX_MERGED_TILES", 0)
    apart, more = run(CASES[name], device)
    assert not names(launches) & APART
    assert names(more) & APART
    assert len(more) > len(launches)
    check_same_bits(together, apart)


def test_tiles_merged_for_other_ranks(device: torch.device) -> None:
    """A rank's tiles of any size become one, and several ranks' tiles one batch."""
    rows, features, groups = 2 * 50, 37, 2
    y = (torch.randn(2, groups, rows, features) * 3 + 100).to(device)  # by rank
    y[1] += 5
    merged = []
    for mine in y:
        parts = mine.unflatten(1, (2, 50)).split(16, 2)  # two phases of 16, 16, 16 and 2 rows
        means = torch.stack([p.mean(2) for p in parts], 2)
        m2 = torch.stack([(p - p.mean(2, keepdim=True)).square().sum(2) for p in parts], 2)
        tiles = torch.stack([means, m2], 3).flatten(1, 2)
        merged.append(merge_tiles(TileStatistics(tiles.contiguous(), 16, 4, 50), rows))
        assert torch.allclose(merged[-1].data[:, 0, 0], mine.mean(1), rtol=1e-6)
        spread = mine.var(1, correction=0) * rows
        assert torch.allclose(merged[-1].data[:, 0, 1], spread, rtol=1e-4)
    affine = (torch.ones(features, device=device), torch.zeros(features, device=device))
    norm = BatchNormForward.allocate(*affine, None, None, groups, 1e-5, 0.1)
    gathered = torch.cat([tiles.data for tiles in merged], 1)
    norm.finalize(merged[0]._replace(data=gathered), 2 * rows)
    whole = y.double().transpose(0, 1).flatten(1, 2)
    assert torch.allclose(norm.params[:, 2].double(), whole.mean(1), rtol=1e-6)
    assert torch.allclose(norm.rstd.double(), whole.var(1, correction=0).rsqrt(), rtol=1e-5)


def test_images_merged_or_apart(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    pixels = torch.randint(0, 256, (10, 16, 16, 1), dtype=torch.uint8)
    images = Images(pixels, torch.randint(0, 10, (10,)), 2 / 255, -1.0)
    case = Case((Layer(conv(16), True),), (1, 80), 16, 10, 2)
    found = []
    for most in (bn_stats.MAX_MERGED_TILES, 0):
        monkeypatch.setattr(bn_stats, "MAX_MERGED_TILES", most)
        with recording(run=True) as launches:
            found.append(outcome(fused_chain, case, *FP32, images, device))
        assert names(launches) & APART == (set() if most else APART)
        assert launches[0].grid[0] > 2 * 2
    check_same_bits(*found)


def test_what_no_tile_holds_whole_is_apart(device: torch.device) -> None:
    """20 features, once for each pixel, in tiles of 16 columns: none holds all of some of them."""
    case = Case((Layer(conv(8), True), Layer(LINEAR, True)), (3, 20, 18), 8, 4)
    _, launches = run(case, device)
    assert [each.name for each in launches].count("bn_finalize_grads_kernel") == 1
    assert not mergeable(1, 40, 20, 16)
    assert mergeable(1, 40, 20, 4)
    assert mergeable(1, 20, 20, 16)
    assert mergeable(bn_stats.MAX_MERGED_TILES // 2, 40, 20, 4)
    assert not mergeable(bn_stats.MAX_MERGED_TILES, 40, 20, 4)


def test_one_buffer_serves_consecutive_chains(
    monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    case = CASES["rows"]
    monkeypatch.setattr(arrival_counters, "_of_stream", {})
    with using_table({"*": Choice("gemm", SMALL)}):
        runs = [outcome(fused_chain, case, *FP32, device=device) for _ in range(2)]
    (buffer,) = arrival_counters._of_stream.values()
    assert buffer.dtype == torch.int32
    assert (buffer == 0).all()
    check_same_bits(*runs)


@pytest.fixture(name="draw")
def _draw(device: torch.device) -> Draw:
    def draw(*shape: int) -> Tensor:
        source = torch.Generator().manual_seed(len(shape) + shape[0])
        return torch.randn(shape, generator=source).to(device)

    return draw


def added_in_order(partial: Tensor) -> Tensor:
    total = torch.zeros_like(partial[0])
    for part in partial:
        total += part
    return total


@pytest.mark.parametrize("splits", [1, 2, 5])
def test_splits_of_a_product_are_added_in_order(splits: int, draw: Draw) -> None:
    x, weight, bias = draw(35, 1, 1, 70), draw(20, 70), draw(20)
    tile = GemmTile(16, 16, 16, splits=splits)
    with recording(run=True) as launches:
        out, _ = launch_implicit_gemm(Deferred(x), weight, LINEAR, 1, Epilogue(bias), tile=tile)
    (launch,) = launches
    partial = arguments(launch)["partial_ptr"]
    if splits == 1:
        assert partial is None
        torch.testing.assert_close(out[:, 0, 0], x[:, 0, 0] @ weight.T + bias)
        return
    assert len(partial) == splits
    assert torch.equal(out[:, 0, 0], added_in_order(partial) + bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_splits_of_a_weight_gradient_are_added_in_order(dtype: torch.dtype, draw: Draw) -> None:
    x, g = draw(6, 8, 8, 18), draw(6, 4, 4, 20)
    weight = draw(20, 18, 2, 2).to(dtype)
    with recording(run=True) as launches:
        found = launch_weight_gradient(
            Deferred(x), Deferred(g), weight, conv(8, 2, 2, (0, 0)), 2, tile=SMALL
        )
    (launch,) = launches
    partial = arguments(launch)["partial_ptr"]
    assert len(partial) == 3
    assert found.dtype == dtype
    assert torch.equal(found, added_in_order(partial).to(dtype).permute(0, 3, 1, 2))


def test_splits_of_an_images_weight_gradient_are_added_in_order(device: torch.device) -> None:
    pixels = torch.randint(0, 256, (24, 16, 16, 3), dtype=torch.uint8)
    case = Case((Layer(conv(16), False),), (3, 40), 16, 24)
    with recording(run=True) as launches:
        found = outcome(fused_chain, case, *FP32, Images(pixels), device)
    partial = arguments(launches[-1])["partial_ptr"]
    assert len(partial) > 4
    expected = added_in_order(partial).cpu().view(40, 4, 4, 3).permute(0, 3, 1, 2)
    assert torch.equal(found["0.weight"].float(), expected)


def test_statistics_of_a_split_product(draw: Draw) -> None:
    """Both at once: the last of a tile's splits writes its statistics, the last of those merges."""
    x, weight = draw(70, 1, 1, 90), draw(40, 90)
    gamma, beta = draw(40), draw(40)
    norm = BatchNormForward.allocate(gamma, beta, gamma * 0, gamma * 0 + 1, 2, 1e-5, 0.1)
    with recording(run=True) as launches:
        y, _ = launch_implicit_gemm(
            Deferred(x), weight, LINEAR, 2, Epilogue(stats_out=norm), tile=SMALL
        )
    assert len(launches) == 1
    halves = y[:, 0, 0].double().view(2, 35, 40)
    deviation = (halves.var(dim=1, unbiased=False) + 1e-5).sqrt()
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(norm.params[:, 2].double(), halves.mean(dim=1), **close)
    torch.testing.assert_close(norm.rstd.double(), 1 / deviation, **close)
    assert norm.running_mean is not None
    running = torch.zeros_like(halves[0, 0])
    for half in halves:
        running += 0.1 * (half.mean(dim=0) - running)
    torch.testing.assert_close(norm.running_mean.double(), running, **close)


def test_gradients_of_a_split_product(draw: Draw) -> None:
    """The data gradient of rows, with batch norm's backward of the previous block."""
    g, weight, y = draw(70, 1, 1, 90), draw(90, 40), draw(71, 40)[:70].view(70, 1, 1, 40)
    params, rstd, gamma = draw(2, 3, 40), draw(2, 40).abs() + 0.5, draw(40)
    back = BatchNormBackward.of_norm(gamma, params, rstd)
    with recording(run=True) as launches:
        epilogue = Epilogue(previous=Deferred(y, params, 0.1), stats_out=back)
        out, tiles = launch_implicit_gemm(
            Deferred(g), weight, LINEAR, 2, epilogue, backward=True, tile=SMALL
        )
    assert len(launches) == 1
    assert tiles is not None
    sums = BatchNormBackward.of_norm(gamma, params, rstd)
    sums.finalize(tiles.data, 35)
    for merged, apart in zip(back.results, sums.results, strict=True):
        assert torch.equal(merged, apart)
    halves = out[:, 0, 0].double().view(2, 35, 40)
    torch.testing.assert_close(back.dbeta.double(), halves.sum(dim=(0, 1)), rtol=1e-4, atol=1e-4)
