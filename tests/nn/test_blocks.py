"""The blocks against torch.nn's layers, in fp64 on CPU tensors."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastinfogan.errors import InputError
from fastinfogan.nn import Block, Chain, ConvBlock, Images, LinearBlock, UpconvBlock
from fastinfogan_kernels.conv_block.layers import LINEAR, ConvGeometry, Layer, LayerTensors, Window
from fastinfogan_kernels.conv_block.reference import reference_chain
from tests.helpers.compare import assert_same, draw, everything, tolerance_of
from tests.helpers.plain_blocks import a_chain, plain, plain_chain, trained_somewhat

BLOCKS: dict[str, tuple[Callable[[], Block], tuple[int, ...]]] = {
    "conv 4x4/2": (lambda: ConvBlock(3, 5, 4, 2), (6, 3, 8, 8)),
    "conv 4x4 same": (lambda: ConvBlock(3, 5, 4, activation="relu"), (6, 3, 7, 5)),
    "conv 3x3/2": (lambda: ConvBlock(3, 5, 3, 2, padding=1, slope=0.3), (6, 3, 7, 7)),
    "conv 1x1, no norm": (lambda: ConvBlock(3, 5, 1, batch_norm=False), (6, 3, 4, 4)),
    "conv, no bias": (lambda: ConvBlock(3, 5, 3, bias=False, activation="none"), (6, 3, 5, 5)),
    "conv, slope above 1": (lambda: ConvBlock(3, 5, 3, slope=1.5), (6, 3, 5, 5)),
    "upconv 4x4/2": (lambda: UpconvBlock(3, 5, 4, 2), (6, 3, 4, 3)),
    "upconv 3x3/2": (lambda: UpconvBlock(3, 5, 3, 2, activation="leaky_relu"), (6, 3, 4, 4)),
    "upconv to an image": (
        lambda: UpconvBlock(3, 1, 4, 2, batch_norm=False, activation="sigmoid"), (6, 3, 4, 4),
    ),
    "linear": (lambda: LinearBlock(7, 9), (6, 7)),
    "linear from feature map": (lambda: LinearBlock(2 * 3 * 4, 9, slope=0.2), (6, 4, 2, 3)),
    "linear to an image": (lambda: LinearBlock(7, 24, shape=(3, 2, 4), activation="relu"), (6, 7)),
    "linear, tanh": (lambda: LinearBlock(7, 4, batch_norm=False, activation="tanh"), (6, 7)),
}  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_its_layers(name: str, training: bool, dtype: torch.dtype) -> None:
    make, shape = BLOCKS[name]
    block = trained_somewhat(make(), dtype).train(training)
    twin = copy.deepcopy(block)
    x = draw(*shape, dtype=dtype)
    found, truth = everything(block, block, x), everything(twin, plain(twin), x)
    assert_same(found, truth, **tolerance_of(dtype))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("training", [True, False])
def test_a_chain_is_its_layers(
    training: bool, memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    chain = trained_somewhat(a_chain(), dtype).train(training)
    assert isinstance(chain, Chain)
    twin = copy.deepcopy(chain)
    dense = draw(6, 2, 8, 8, dtype=dtype).contiguous(memory_format=memory_format)
    sliced = draw(6, 2, 8, 16, dtype=dtype)[..., ::2]
    for x in (dense, sliced):
        found, truth = everything(chain, chain, x), everything(twin, plain_chain(twin), x)
        assert_same(found, truth, **tolerance_of(dtype))


def test_groups_are_separate_batches() -> None:
    chain = trained_somewhat(a_chain())
    twin = copy.deepcopy(chain)
    x = draw(8, 2, 8, 8)
    found = everything(chain, lambda x: chain(x, groups=2), x)
    parts = everything(twin, lambda x: torch.cat([twin(part) for part in x.chunk(2)]), x)
    assert_same(found, parts)
    assert chain[1].norm.num_batches_tracked == 2


def test_batch_norm_without_parameters_or_statistics() -> None:
    block = ConvBlock(3, 5, 3).double()
    block.norm = nn.BatchNorm2d(5, affine=False, track_running_stats=False).double()
    twin = copy.deepcopy(block)
    for training in (True, False):
        block.train(training)
        twin.train(training)
        x = draw(6, 3, 5, 5)
        assert_same(everything(block, block, x), everything(twin, plain(twin), x))


def small_layers() -> tuple[tuple[Layer, ...], tuple[LayerTensors, ...]]:
    window, up = Window(4, 4, 4, 2, 1, 1), Window(4, 4, 3, 2, 0, 1)
    layers = (
        Layer(ConvGeometry(window, False), True, slope=0.2),
        Layer(ConvGeometry(up, True), True, slope=0.0),
        Layer(LINEAR, False, "tanh"),
    )
    weights = (draw(3, 2, 4, 4), draw(3, 2, 3, 3, seed=2), draw(2, 32, seed=3) / 6)
    tensors = tuple(
        LayerTensors(w, draw(b), draw(b, seed=4) if n else None, draw(b, seed=5) if n else None)
        for w, b, n in zip(weights, (3, 2, 2), (True, True, False), strict=True)
    )
    return layers, tensors


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_gradients_of_the_reference(check: Callable[..., bool]) -> None:
    layers, tensors = small_layers()
    given = [t for each in tensors for t in each if t is not None]

    def run(x: Tensor, *flat: Tensor) -> Tensor:
        rest = iter(flat)
        rebuilt = [LayerTensors(*(None if t is None else next(rest) for t in e)) for e in tensors]
        return reference_chain(x, layers, rebuilt, 2)

    inputs = [t.clone().requires_grad_() for t in (draw(4, 2, 4, 4), *given)]
    assert check(run, inputs, fast_mode=True)


def test_images_are_scaled_and_gathered() -> None:
    pixels = torch.randint(0, 256, (5, 8, 8, 2), dtype=torch.uint8)
    index = torch.tensor([4, 0, 0, 3])
    chain = a_chain()
    twin = copy.deepcopy(chain)
    x = pixels[index].permute(0, 3, 1, 2).float() * (2 / 255) - 1
    torch.testing.assert_close(chain(Images(pixels, index, 2 / 255, -1.0)), twin(x))
    with pytest.raises(InputError, match="int64"):
        Images(pixels, index.int())
    with pytest.raises(InputError, match="contiguous"):
        Images(pixels.permute(0, 3, 1, 2))
    with pytest.raises(InputError, match=r"float32.*float64"):
        a_chain().double()(Images(pixels))


def test_one_value_a_channel_is_enough_to_evaluate() -> None:
    assert a_chain().eval()(torch.zeros(1, 2, 8, 8)).shape == (1, 1, 8, 8)


def test_meta_tensors_pass() -> None:
    assert a_chain().to("meta")(torch.zeros(4, 2, 8, 8, device="meta")).shape == (4, 1, 8, 8)


def test_a_1x1_convolution_of_one_pixel() -> None:
    block = ConvBlock(5, 7, 1, padding=0).double()
    x = torch.randn(6, 5, 1, 1, dtype=torch.float64)
    expected = block.norm(F.conv2d(x, block.layer.weight, block.layer.bias))
    torch.testing.assert_close(block(x), F.leaky_relu(expected, 0.1))
