"""Bad input of blocks is an error before any state changes."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from fastinfogan.errors import InputError
from fastinfogan.nn import Block, Chain, ConvBlock, LinearBlock, UpconvBlock
from tests.helpers.compare import draw
from tests.helpers.plain_blocks import a_chain


def slope_set(slope: float) -> nn.Module:
    block = ConvBlock(2, 4, 4, 2)
    block.slope = slope
    return block


def momentum_none() -> nn.Module:
    block = ConvBlock(2, 4, 4, 2)
    assert block.norm is not None
    block.norm.momentum = None
    return block


BAD: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], object], str]] = {
    "triton without a GPU": (
        lambda: ConvBlock(2, 4, 4, 2, impl="triton"), lambda m: m(draw(4, 2, 8, 8).float()),
        "impl='auto'.*TRITON_INTERPRET=1",
    ),
    "unknown impl": (
        lambda: ConvBlock(2, 4, 4, 2, impl="cuda"),
        lambda m: m(draw(4, 2, 8, 8).float()), "not 'cuda'",
    ),
    "rows to a convolution": (a_chain, lambda m: m(torch.zeros(4, 2)), "takes .N, C, H, W."),
    "one image": (a_chain, lambda m: m(torch.zeros(2, 8, 8)), "not 3 dimensions"),
    "a vector": (a_chain, lambda m: m(torch.zeros(8)), "not 1 dimensions"),
    "a number": (a_chain, lambda m: m(torch.zeros(())), "not 0 dimensions"),
    "sequences to a linear block": (
        lambda: LinearBlock(6, 4), lambda m: m(torch.zeros(4, 2, 3)), "not 3 dimensions"
    ),
    "channels": (a_chain, lambda m: m(torch.zeros(4, 3, 8, 8)), "takes 2 channels, not 3"),
    "features": (a_chain, lambda m: m(torch.zeros(4, 2, 16, 16)), "takes 24 features, not 96"),
    "feature map smaller than the filter": (
        lambda: ConvBlock(2, 4, 4, padding=0), lambda m: m(torch.zeros(4, 2, 3, 3)), "not fit"
    ),
    "device": (a_chain, lambda m: m(torch.zeros(4, 2, 8, 8, device="meta")), "meta.*cpu"),
    "weights elsewhere": (
        lambda: Chain(ConvBlock(2, 4, 4, 2), ConvBlock(4, 4, 4, 2).to("meta")),
        lambda m: m(torch.zeros(4, 2, 8, 8)), "cpu.*meta",
    ),
    "dtype": (a_chain, lambda m: m(torch.zeros(4, 2, 8, 8).double()), "float64.*float32.*autocast"),
    "integers": (a_chain, lambda m: m(torch.zeros(4, 2, 8, 8).long()), "int64.*float32"),
    "weights of two types": (
        lambda: Chain(ConvBlock(2, 4, 4, 2), ConvBlock(4, 4, 4, 2).double()),
        lambda m: m(torch.zeros(4, 2, 8, 8)), "float32.*float64",
    ),
    "empty batch": (a_chain, lambda m: m(torch.zeros(0, 2, 8, 8)), "empty batch"),
    "one value a channel": (a_chain, lambda m: m(torch.zeros(1, 2, 8, 8)), "one value per channel"),
    "one value a channel and group": (
        a_chain, lambda m: m(torch.zeros(4, 2, 8, 8), groups=4), "one value per channel"
    ),
    "groups": (a_chain, lambda m: m(torch.zeros(4, 2, 8, 8), groups=3), "not divide into 3"),
    "no groups": (a_chain, lambda m: m(torch.zeros(4, 2, 8, 8), groups=0), "0 groups"),
    "sigmoid in the middle": (
        lambda: Chain(ConvBlock(2, 4, 4, 2), ConvBlock(4, 4, 1, activation="sigmoid"),
                      ConvBlock(4, 4, 4, 2)),
        lambda m: m(torch.zeros(4, 2, 8, 8)), "sigmoid can only end",
    ),
    "not a block": (
        lambda: Chain(ConvBlock(2, 4, 4, 2), nn.ReLU()),
        lambda m: m(torch.zeros(4, 2, 8, 8)), "not of ReLU",
    ),
    "slope set later": (
        lambda: slope_set(math.nan), lambda m: m(torch.zeros(4, 2, 8, 8)), "slope .*not nan"
    ),
    "cumulative statistics": (
        momentum_none, lambda m: m(torch.zeros(4, 2, 8, 8)), "momentum=None"
    ),
    "no block": (Chain, lambda m: m(torch.zeros(4, 2, 8, 8)), "without blocks"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_changes_nothing(name: str) -> None:
    make, call, message = BAD[name]
    module = make()
    before = {k: b.clone() for k, b in module.named_buffers()}
    with pytest.raises(InputError, match=message):
        call(module)
    for key, buffer in module.named_buffers():
        if buffer.device.type != "meta":
            assert torch.equal(buffer, before[key]), key


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvBlock(2, 4, 4, slope=math.nan), "slope"),
        (lambda: ConvBlock(2, 4, 4, slope=math.inf), "slope"),
        (lambda: UpconvBlock(2, 4, 4, 2, slope=-0.1), "slope"),
        (lambda: UpconvBlock(2, 4, 2, 4), "2 is below 4"),
        (lambda: LinearBlock(2, 5, shape=(1, 2, 3)), "6 features, not 5"),
        (lambda: ConvBlock(2, 4, 4, activation="gelu"), "gelu"),
    ],
)
def test_bad_arguments(make: Callable[[], Block], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_cumulative_statistics_can_be_evaluated() -> None:
    block, twin = momentum_none().eval(), ConvBlock(2, 4, 4, 2).eval()
    twin.load_state_dict(block.state_dict())
    x = draw(4, 2, 8, 8).float()
    torch.testing.assert_close(block(x), twin(x))
