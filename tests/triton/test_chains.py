"""Fused chains against fp64, forward, all gradients and running statistics."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bench.accuracy import MismatchError, check_accuracy, check_same_bits
from fastinfogan_kernels.conv_block import ops
from fastinfogan_kernels.conv_block.autograd import fused_chain
from fastinfogan_kernels.conv_block.launch_table import Choice, GemmTile, using_table
from fastinfogan_kernels.conv_block.layers import Images, Layer
from fastinfogan_kernels.conv_block.reference import reference_chain
from fastinfogan_kernels.runtime.launch import recording
from tests.helpers.chain_cases import (
    LINEAR,
    Case,
    conv,
    every_window,
    experiments_at_small_widths,
    outcome,
    upconv,
)

FP32 = (torch.float32, torch.float32)
CASES = {**every_window(), **experiments_at_small_widths()}
SMALL = {
    "conv": Case((Layer(conv(4, 1, 1, (0, 0)), True), Layer(conv(4, 2, 1, (0, 1)), True)),
                 (5, 17, 19), 4, 4, 2),
    "upconv": Case((Layer(conv(3, 1, 1, (0, 0)), True), Layer(upconv(3, 2, 1), True)),
                   (5, 17, 19), 3, 4, 2),
    "strided": Case((Layer(conv(4), True), Layer(upconv(2), False, "tanh")), (17, 18, 3), 4, 4),
    "linear": Case((Layer(LINEAR, True), Layer(LINEAR, False, "none")), (150, 18, 14), 0, 8),
}  # fmt: skip


def check(
    case: Case,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    weight_dtype: torch.dtype = torch.float32,
) -> None:
    """Compare a chain by the kernels with fp64, and PyTorch at the same precision with fp64."""
    truth = outcome(reference_chain, case, torch.float64, torch.float64)
    baseline = outcome(reference_chain, case, dtype, dtype)
    check_accuracy(
        outcome(fused_chain, case, dtype, weight_dtype, device=device), baseline, truth, dtype
    )


@pytest.mark.parametrize("name", CASES)
def test_fp32(name: str, device: torch.device) -> None:
    check(CASES[name], device)


@pytest.mark.parametrize("name", ["4x4 stride 2", "up 4x4 stride 2", "mnist trunk", "heads"])
def test_16_bit_storage_with_fp32_weights(
    name: str, half: torch.dtype, device: torch.device
) -> None:
    """Without kinks: rounding y moves a value across one now and then, by chance."""
    case = CASES[name]
    check(
        replace(case, layers=tuple(replace(each, slope=1.0) for each in case.layers)), device, half
    )


@pytest.mark.parametrize("candidate", ["aten", "small tiles", "many splits"])
@pytest.mark.parametrize("name", SMALL)
def test_every_candidate_of_the_launch_table(
    name: str, candidate: str, device: torch.device
) -> None:
    choice = {
        "aten": Choice("aten"),
        "small tiles": Choice("gemm", GemmTile(16, 16, 16)),
        "many splits": Choice("gemm", GemmTile(16, 32, 16, splits=7)),
    }[candidate]
    with using_table({"*": choice}), recording(run=True) as launches:
        check(SMALL[name], device)
    if candidate == "aten" and name != "linear":
        kernels = {launch.name for launch in launches}
        assert "implicit_gemm_kernel" not in kernels
        assert {"tile_statistics_kernel", "bn_backward_apply_kernel"} <= kernels


@pytest.mark.parametrize("batch", [1, 2, 3, 33])
def test_any_batch(batch: int, device: torch.device) -> None:
    check(Case((Layer(conv(8), False), Layer(conv(4), True)), (3, 7, 18), 8, batch), device)


@pytest.mark.parametrize("slope", [0.0, 0.01, 0.3, 1.0])
def test_slopes(slope: float, device: torch.device) -> None:
    layers = (Layer(conv(8), True, slope=slope), Layer(conv(4), True, slope=slope))
    check(Case(layers, (3, 16, 16), 8), device)


def test_groups_have_statistics_of_their_own(device: torch.device) -> None:
    case = SMALL["conv"]
    count = case.batch // 2
    both = outcome(fused_chain, case, *FP32, device=device)
    half = Case(case.layers, case.channels, case.side, count, 1)
    first = outcome(fused_chain, half, *FP32, case.input()[:count].clone(), device)
    torch.testing.assert_close(both["out"][:count], first["out"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_uint8_images_gathered_by_index(channels: int, norm: bool, device: torch.device) -> None:
    pixels = torch.randint(
        0, 256, (9, 8, 8, channels), dtype=torch.uint8, generator=torch.Generator().manual_seed(4)
    )
    index = torch.tensor([3, 1, 4, 1, 5, 0])
    images = Images(pixels, index, 2 / 255, -1.0)
    layers = (Layer(conv(8), norm), Layer(conv(4), True))
    case = Case(layers, (channels, 7, 18), 8, 6, 2)
    written = images.materialize().double()
    truth = outcome(reference_chain, case, torch.float64, torch.float64, written)
    del truth["input"]
    baseline = outcome(reference_chain, case, *FP32, images)
    actual = outcome(fused_chain, case, *FP32, images, device)
    check_accuracy(actual, baseline, truth, torch.float32)


def test_the_same_at_every_run(device: torch.device) -> None:
    case = CASES["svhn trunk"] if device.type == "cuda" else SMALL["strided"]
    runs = [outcome(fused_chain, case, *FP32, device=device) for _ in range(2)]
    check_same_bits(*runs)


def statistics_of(x: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation that a 1x1 identity convolution's batch norm finds."""
    channels = x.shape[1]
    weight = torch.eye(channels, device=device)[:, :, None, None]
    ones, zeros = torch.ones(channels, device=device), torch.zeros(channels, device=device)
    y = x.permute(0, 2, 3, 1).contiguous().to(device)
    _, params, rstd = ops.norm_block(
        y, None, 1.0, weight, None, ones, zeros, None, None,
        [x.shape[2], x.shape[3], 1, 1, 0, 0], False, 1, 0.0, 0.1,
    )  # fmt: skip
    return params[0, 2].cpu(), 1 / rstd[0].cpu()


@pytest.mark.parametrize("ratio", [1.0, 50.0, 300.0])
def test_variance_far_from_zero(ratio: float, device: torch.device) -> None:
    """Where sums of squares would lose 1 % of the variance, merged tiles lose next to nothing."""
    x = torch.randn(8, 16, 12, 12, generator=torch.Generator().manual_seed(5)) + ratio
    _, deviation = statistics_of(x, device)
    exact = x.double().std(dim=(0, 2, 3), unbiased=False)
    assert ((deviation - exact) / exact).abs().max() < 5e-6


def test_a_constant_channel_has_no_variance(device: torch.device) -> None:
    mean, deviation = statistics_of(torch.full((4, 16, 8, 8), 7.25), device)
    assert torch.equal(mean, torch.full((16,), 7.25))
    assert (deviation == 0).all()


def test_nan_in_is_nan_out(device: torch.device) -> None:
    case = SMALL["conv"]
    x = case.input()
    x[0, 0, 0, 0] = float("nan")
    actual = outcome(fused_chain, case, *FP32, x, device)
    out, half = actual["out"], case.batch // 2
    assert torch.equal(out.isnan(), outcome(reference_chain, case, *FP32, x.clone())["out"].isnan())
    assert out[:half].isnan().all()
    assert not out[half:].isnan().any()
    # The batch that was not finite left running statistics alone, the other one moved them.
    assert all(t.isfinite().all() for name, t in actual.items() if "running" in name)


def test_infinities_pass_a_relu(device: torch.device) -> None:
    layers = (Layer(conv(4, 1, 1, (0, 0)), False, slope=0.0), Layer(conv(4, 1, 1, (0, 0)), False))
    case = Case(layers, (1, 16, 16), 4)
    x = case.input()
    x[0, 0, 0, 0] = float("-inf")
    actual, expected = (
        outcome(run, case, *FP32, x.clone(), where)["out"].isnan()
        for run, where in ((fused_chain, device), (reference_chain, "cpu"))
    )
    assert torch.equal(actual, expected)


def test_a_planted_error_is_caught(device: torch.device) -> None:
    """The comparison sees a slope that is off by one part in a thousand."""
    case = SMALL["conv"]
    layers = tuple(replace(each, slope=each.slope * 1.001) for each in case.layers)
    truth = outcome(reference_chain, case, torch.float64, torch.float64)
    baseline = outcome(reference_chain, case, *FP32)
    wrong = outcome(fused_chain, replace(case, layers=layers), *FP32, device=device)
    with pytest.raises(MismatchError):
        check_accuracy(wrong, baseline, truth, torch.float32)
