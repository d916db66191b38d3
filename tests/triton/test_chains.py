"""Fused chains against fp64, forward, all gradients and running statistics."""

from dataclasses import replace

import pytest
import torch

from fastinfogan_kernels.conv_block.autograd import fused_chain
from fastinfogan_kernels.conv_block.launch_table import Choice, GemmTile, using_table
from fastinfogan_kernels.conv_block.layers import Images, Layer
from fastinfogan_kernels.conv_block.reference import reference_chain
from fastinfogan_kernels.runtime.launch import recording
from tests.helpers.chain_cases import (
    LINEAR,
    Case,
    Outcome,
    assert_close,
    conv,
    every_map,
    experiments_at_small_widths,
    far,
    outcome,
    upconv,
)

CASES = {**every_map(), **experiments_at_small_widths()}
SMALL = {
    "conv": Case((Layer(conv(4, 1, 1, (0, 0)), True), Layer(conv(4, 4, 1, (1, 2)), True)),
                 (5, 17, 19), 4, 4, 2),
    "upconv": Case((Layer(conv(3, 1, 1, (0, 0)), True), Layer(upconv(3, 4, 1), True)),
                   (5, 17, 19), 3, 4, 2),
    "strided": Case((Layer(conv(4), True), Layer(upconv(2), False, "tanh")), (17, 18, 3), 4, 4),
    "linear": Case((Layer(LINEAR, True), Layer(LINEAR, False, "none")), (150, 18, 14), 0, 8),
}  # fmt: skip


def truth_of(case: Case) -> Outcome:
    return outcome(reference_chain, case, torch.float64, torch.float64)


@pytest.mark.parametrize("name", CASES)
def test_fp32(name: str) -> None:
    case = CASES[name]
    truth = truth_of(case)
    theirs = outcome(reference_chain, case, torch.float32, torch.float32)
    assert_close(outcome(fused_chain, case, torch.float32, torch.float32), truth, theirs, 3e-6)


def without_kinks(case: Case) -> Case:
    """Rounding y to fp16 moves a value across a kink now and then: chance, not error."""
    layers = tuple(replace(layer, slope=1.0) for layer in case.layers)
    return replace(case, layers=layers)


@pytest.mark.parametrize("name", ["4x4 stride 2", "up 4x4 stride 2", "mnist trunk", "heads"])
def test_fp16_storage_with_fp32_weights(name: str) -> None:
    case = without_kinks(CASES[name])
    truth = truth_of(case)
    theirs = outcome(reference_chain, case, torch.float16, torch.float16)
    ours = outcome(fused_chain, case, torch.float16, torch.float32)
    assert_close(ours, truth, theirs, 1e-4)


@pytest.mark.parametrize("candidate", ["aten", "small tiles", "many splits"])
@pytest.mark.parametrize("name", SMALL)
def test_every_candidate_of_the_launch_table(name: str, candidate: str) -> None:
    choice = {
        "aten": Choice("aten"),
        "small tiles": Choice("gemm", GemmTile(16, 16, 16)),
        "many splits": Choice("gemm", GemmTile(16, 32, 16, splits=7)),
    }[candidate]
    case = SMALL[name]
    with using_table({"*": choice}), recording(run=True) as launches:
        ours = outcome(fused_chain, case, torch.float32, torch.float32)
    if candidate == "aten" and name != "linear":
        kernels = {launch.name for launch in launches}
        assert "implicit_gemm_kernel" not in kernels
        assert {"tile_statistics_kernel", "bn_backward_apply_kernel"} <= kernels
    theirs = outcome(reference_chain, case, torch.float32, torch.float32)
    assert_close(ours, truth_of(case), theirs, 3e-6)


@pytest.mark.parametrize("batch", [1, 2, 3, 33])
def test_any_batch(batch: int) -> None:
    layers = (Layer(conv(8), False), Layer(conv(4), True))
    case = Case(layers, (3, 7, 18), 8, batch)
    theirs = outcome(reference_chain, case, torch.float32, torch.float32)
    ours = outcome(fused_chain, case, torch.float32, torch.float32)
    assert_close(ours, truth_of(case), theirs, 5e-6)


@pytest.mark.parametrize("slope", [0.0, 0.01, 0.3, 1.0])
def test_slopes(slope: float) -> None:
    layers = (Layer(conv(8), True, slope=slope), Layer(conv(4), True, slope=slope))
    case = Case(layers, (3, 16, 16), 8)
    theirs = outcome(reference_chain, case, torch.float32, torch.float32)
    ours = outcome(fused_chain, case, torch.float32, torch.float32)
    assert_close(ours, truth_of(case), theirs, 3e-6)


def test_groups_are_batches_of_their_own() -> None:
    one = CASES["mnist trunk"]
    ours = outcome(fused_chain, one, torch.float32, torch.float32)
    half = Case(one.layers, one.channels, one.side, one.batch // 2, 1)
    first = outcome(
        fused_chain, half, torch.float32, torch.float32, one.input()[: one.batch // 2].clone()
    )
    torch.testing.assert_close(ours.out[: one.batch // 2], first.out, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_uint8_images_gathered_by_index(channels: int, norm: bool) -> None:
    pixels = torch.randint(
        0, 256, (9, 8, 8, channels), dtype=torch.uint8, generator=torch.Generator().manual_seed(4)
    )
    index = torch.tensor([3, 1, 4, 1, 5, 0])
    images = Images(pixels, index, 2 / 255, -1.0)
    layers = (Layer(conv(8), norm), Layer(conv(4), True))
    case = Case(layers, (channels, 7, 18), 8, 6, 2)
    written = images.materialize().double()
    truth = outcome(reference_chain, case, torch.float64, torch.float64, written)
    theirs = outcome(reference_chain, case, torch.float32, torch.float32, images)
    ours = outcome(fused_chain, case, torch.float32, torch.float32, images)
    truth.gradients.pop("input")
    assert_close(ours, truth, theirs, 3e-6)


def test_the_same_at_every_run() -> None:
    case = CASES["svhn trunk"]
    one, other = (outcome(fused_chain, case, torch.float32, torch.float32) for _ in range(2))
    assert torch.equal(one.out, other.out)
    for name in one.gradients:
        assert torch.equal(one.gradients[name], other.gradients[name])


def statistics_of(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation that a 1x1 identity convolution's batch norm finds."""
    from fastinfogan_kernels.conv_block import ops

    channels = x.shape[1]
    weight = torch.eye(channels)[:, :, None, None]
    ones, zeros = torch.ones(channels), torch.zeros(channels)
    _, params, rstd = ops.norm_block(
        x.permute(0, 2, 3, 1).contiguous(), None, 1.0, weight, None, ones, zeros, None, None,
        [x.shape[2], x.shape[3], 1, 1, 0, 0], False, 1, 0.0, 0.1,
    )  # fmt: skip
    return params[0, 2], 1 / rstd[0]


@pytest.mark.parametrize("ratio", [1.0, 50.0, 300.0])
def test_variance_far_from_zero(ratio: float) -> None:
    """Where sums of squares would lose 1 % of the variance, merged tiles lose next to nothing."""
    x = torch.randn(16, 16, 12, 12, generator=torch.Generator().manual_seed(5)) + ratio
    _, deviation = statistics_of(x)
    exact = x.double().std(dim=(0, 2, 3), unbiased=False)
    assert ((deviation - exact) / exact).abs().max() < 5e-6


def test_a_constant_channel_has_no_variance() -> None:
    mean, deviation = statistics_of(torch.full((4, 16, 8, 8), 7.25))
    assert torch.equal(mean, torch.full((16,), 7.25))
    assert (deviation == 0).all()


def test_nan_in_is_nan_out() -> None:
    case = CASES["4x4 stride 2"]
    x = case.input()
    x[0, 0, 0, 0] = float("nan")
    ours = outcome(fused_chain, case, torch.float32, torch.float32, x)
    theirs = outcome(reference_chain, case, torch.float32, torch.float32, x.detach().clone())
    assert torch.equal(ours.out.isnan(), theirs.out.isnan())
    assert ours.out[: case.batch // 2].isnan().all()
    assert not ours.out[case.batch // 2 :].isnan().any()
    # The batch that was not finite left running statistics alone, the other one moved them.
    assert all(value.isfinite().all() for value in ours.running.values())


def test_infinities_pass_a_relu() -> None:
    layers = (Layer(conv(4, 1, 1, (0, 0)), False, slope=0.0), Layer(conv(4, 1, 1, (0, 0)), False))
    case = Case(layers, (1, 16, 16), 4)
    x = case.input()
    x[0, 0, 0, 0] = float("-inf")
    ours = outcome(fused_chain, case, torch.float32, torch.float32, x)
    theirs = outcome(reference_chain, case, torch.float32, torch.float32, x.detach().clone())
    assert torch.equal(ours.out.isnan(), theirs.out.isnan())


def test_a_planted_error_is_caught() -> None:
    """The comparison sees a slope that is off by one part in a thousand."""
    case = CASES["4x4 stride 2"]
    truth = truth_of(case)
    wrong = Case(
        tuple(Layer(e.geometry, e.norm, slope=e.slope * 1.001) for e in case.layers),
        case.channels, case.side, case.batch, case.groups,
    )  # fmt: skip
    ours = outcome(fused_chain, wrong, torch.float32, torch.float32)
    theirs = outcome(reference_chain, case, torch.float32, torch.float32)
    with pytest.raises(AssertionError):
        assert_close(ours, truth, theirs, 3e-6)
    assert max(far(ours, truth).values()) < 5e-2
