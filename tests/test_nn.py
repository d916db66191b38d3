"""The blocks against the layers of torch.nn that they stand for, in fp64 on CPU tensors."""

import copy
import io
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fastinfogan.errors import InputError
from fastinfogan.kernels.chain import Layer, LayerTensors
from fastinfogan.kernels.geometry import LINEAR, Gather, Window
from fastinfogan.kernels.node import reference_chain
from fastinfogan.nn import (
    Block,
    Chain,
    ConvBlock,
    Images,
    LinearBlock,
    UpconvBlock,
    statistics_frozen,
    synchronise,
)


def activation_of(block: Block) -> Callable[[Tensor], Tensor]:
    return {
        "none": lambda z: z,
        "relu": torch.relu,
        "leaky_relu": lambda z: F.leaky_relu(z, block.slope),
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
    }[block.activation]


def plain(block: Block) -> Callable[[Tensor], Tensor]:
    """What a block computes, by torch's own modules with the block's own parameters."""
    layer, norm, activation = block.layer, block.norm, activation_of(block)

    def run(x: Tensor) -> Tensor:
        if isinstance(layer, nn.Linear) and x.dim() == 4:
            x = x.permute(0, 2, 3, 1).flatten(1)
        if isinstance(block, ConvBlock) and block.padding[0] != block.padding[1]:
            x = F.pad(x, block.padding * 2)
        z = layer(x)
        if isinstance(block, UpconvBlock):
            height, width = (side * layer.stride[0] for side in x.shape[2:])
            z = z[:, :, :height, :width]
        out = activation(norm(z) if norm is not None else z)
        if isinstance(block, LinearBlock) and block.shape is not None:
            out = out.unflatten(1, block.shape).permute(0, 3, 1, 2)
        return out

    return run


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
    "linear from a map": (lambda: LinearBlock(2 * 3 * 4, 9, slope=0.2), (6, 4, 2, 3)),
    "linear to a map": (lambda: LinearBlock(7, 24, shape=(3, 2, 4), activation="relu"), (6, 7)),
    "linear, tanh": (lambda: LinearBlock(7, 4, batch_norm=False, activation="tanh"), (6, 7)),
}  # fmt: skip


def trained_somewhat(module: nn.Module) -> nn.Module:
    """In fp64, with statistics and parameters that are none of 0 and 1."""
    source = torch.Generator().manual_seed(7)
    module.double()
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=source, dtype=torch.float64) / 3)
                if name.endswith(("running_var", "norm.weight")):
                    tensor.abs_().add_(0.5)
    return module.requires_grad_()


def a_chain() -> Chain:
    """Every kind of block."""
    return Chain(
        ConvBlock(2, 4, 4, 2, batch_norm=False),
        ConvBlock(4, 6, 4, 2),
        LinearBlock(6 * 2 * 2, 10, activation="relu"),
        LinearBlock(10, 3 * 2 * 2, shape=(2, 2, 3), activation="relu"),
        UpconvBlock(3, 4, 4, 2),
        UpconvBlock(4, 1, 4, 2, batch_norm=False, activation="sigmoid"),
    )


def plain_chain(chain: Chain) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        for block in chain:
            x = plain(block)(x)  # type: ignore[arg-type]
        return x

    return run


def draw(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def everything(module: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, Tensor]:
    """Output, gradients and buffers after one forward and backward."""
    module.zero_grad()
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    out = run(x)
    (out * draw(*out.shape, seed=2).to(out.dtype)).sum().backward()
    found = {"out": out.detach(), "x": x.grad}
    found |= {k: p.grad.clone() for k, p in module.named_parameters() if p.grad is not None}
    found |= {k: b.clone() for k, b in module.named_buffers()}
    return found  # type: ignore[return-value]


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], atol: float = 1e-11) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(
            one[name], other[name], rtol=1e-9, atol=atol, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_its_layers(name: str, training: bool) -> None:
    make, shape = BLOCKS[name]
    block = trained_somewhat(make()).train(training)
    twin = copy.deepcopy(block)
    assert_same(
        everything(block, block, draw(*shape)),
        everything(twin, plain(twin), draw(*shape)),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("training", [True, False])
def test_a_chain_is_its_layers(training: bool, memory_format: torch.memory_format) -> None:
    chain = trained_somewhat(a_chain()).train(training)
    assert isinstance(chain, Chain)
    twin = copy.deepcopy(chain)
    x = draw(6, 2, 8, 8).contiguous(memory_format=memory_format)
    assert_same(everything(chain, chain, x), everything(twin, plain_chain(twin), x))
    sliced = draw(6, 2, 8, 16)[..., ::2]
    assert_same(everything(chain, chain, sliced), everything(twin, plain_chain(twin), sliced))


def test_groups_are_batches_of_their_own() -> None:
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


def test_frozen_statistics_are_left_alone() -> None:
    chain = a_chain()
    before = {k: b.clone() for k, b in chain.named_buffers()}
    with statistics_frozen(chain):
        chain(draw(4, 2, 8, 8).float())
    assert_same(before, dict(chain.named_buffers()))


@pytest.mark.parametrize("training", [True, False])
def test_compiled(training: bool) -> None:
    chain = trained_somewhat(a_chain()).train(training)
    twin = copy.deepcopy(chain)
    torch._dynamo.reset()
    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager")
    x = draw(4, 2, 8, 8)
    for _ in range(2):
        assert_same(everything(chain, compiled, x), everything(twin, twin, x))


def test_compiled_by_inductor() -> None:
    chain = trained_somewhat(Chain(ConvBlock(2, 4, 4, 2), LinearBlock(4 * 4 * 4, 3)))
    twin = copy.deepcopy(chain)
    torch._dynamo.reset()
    compiled = torch.compile(chain, fullgraph=True)
    x = draw(4, 2, 8, 8)
    assert_same(everything(chain, compiled, x), everything(twin, twin, x), 1e-9)


def test_autocast() -> None:
    """No further from fp32 than twice what torch's layers are under autocast."""
    chain = a_chain()
    twin, wide = copy.deepcopy(chain), copy.deepcopy(chain)
    x = draw(8, 2, 8, 8).float()

    def low(run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def under_autocast(x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return run(x)

        return under_autocast

    found = everything(chain, low(chain), x)
    assert found["out"].dtype == torch.bfloat16
    assert found["0.layer.weight"].dtype == torch.float32
    theirs = everything(twin, low(plain_chain(twin)), x)
    truth = everything(wide, plain_chain(wide), x)
    assert found.keys() == theirs.keys()
    for name, true in truth.items():
        ours, allowed = ((each[name] - true).norm() for each in (found, theirs))
        assert ours <= 2 * allowed + 1e-3 * true.norm(), name


@pytest.mark.parametrize("trained", ["0.", "1.norm", "2.layer.weight", "5.", "input"])
def test_subsets_of_the_parameters(trained: str) -> None:
    chain = trained_somewhat(a_chain())
    twin = copy.deepcopy(chain)
    for module in (chain, twin):
        for name, p in module.named_parameters():
            p.requires_grad_(name.startswith(trained))
    x = draw(4, 2, 8, 8)
    found, truth = everything(chain, chain, x), everything(twin, plain_chain(twin), x)
    assert_same(found, truth)
    trained_ones = [name for name, _ in chain.named_parameters() if name in found]
    assert all(name.startswith(trained) for name in trained_ones)


def test_gradients_accumulate() -> None:
    chain = trained_somewhat(a_chain())
    single = copy.deepcopy(chain)
    one, two = draw(4, 2, 8, 8), draw(4, 2, 8, 8, seed=3)
    outs = [chain(one), chain(two)]
    for out in outs:
        out.square().sum().backward()
    sums: dict[str, Tensor] = {}
    for x in (one, two):
        single.zero_grad()
        single(x).square().sum().backward()
        for name, p in single.named_parameters():
            sums[name] = sums.get(name, 0) + p.grad
    assert_same({k: p.grad for k, p in chain.named_parameters()}, sums)  # type: ignore[misc]


def test_activation_checkpointing() -> None:
    chain = trained_somewhat(a_chain())
    twin = copy.deepcopy(chain)

    def again(x: Tensor) -> Tensor:
        return checkpoint(chain, x, use_reentrant=False)  # type: ignore[no-any-return]

    found, truth = (
        everything(chain, again, draw(4, 2, 8, 8)),
        everything(twin, twin, draw(4, 2, 8, 8)),
    )
    # As with torch's own batch norm, running statistics take in the batch a second time.
    learned = [name for name in truth if "running" not in name and "tracked" not in name]
    assert_same({k: found[k] for k in learned}, {k: truth[k] for k in learned})


@pytest.mark.parametrize("copied", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_independent(copied: str) -> None:
    chain = trained_somewhat(a_chain())
    if copied == "deepcopy":
        other = copy.deepcopy(chain)
    elif copied == "pickle":
        other = pickle.loads(pickle.dumps(chain))
    else:
        file = io.BytesIO()
        torch.save(chain, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    x = draw(4, 2, 8, 8)
    assert_same(everything(chain, chain, x), everything(other, other, x))
    other(x).sum().backward()
    assert other[1].norm.num_batches_tracked == 2
    assert chain[1].norm.num_batches_tracked == 1


def small_layers() -> tuple[tuple[Layer, ...], tuple[LayerTensors, ...]]:
    window, up = Window(4, 4, 4, 2, 1, 1), Window(4, 4, 3, 2, 0, 1)
    layers = (
        Layer(Gather(window, False), True, slope=0.2),
        Layer(Gather(up, True), True, slope=0.0),
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


@pytest.mark.parametrize("training", [True, False])
def test_gradient_penalty(training: bool) -> None:
    chain = trained_somewhat(a_chain()).train(training)
    assert isinstance(chain, Chain)
    twin = copy.deepcopy(chain)
    results = []
    for module, run in ((chain, chain), (twin, plain_chain(twin))):
        x = draw(4, 2, 8, 8).requires_grad_()
        (slopes,) = torch.autograd.grad(run(x).sum(), x, create_graph=True)
        slopes.flatten(1).norm(dim=1).sub(1).square().sum().backward()
        results.append({k: p.grad for k, p in module.named_parameters() if p.grad is not None})
    assert_same(*results)  # type: ignore[arg-type]


def test_convert_sync_batchnorm_is_told_the_way() -> None:
    chain = a_chain()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(chain)
    for training in (True, False):
        with pytest.raises(InputError, match=r"fastinfogan\.nn\.synchronise"):
            converted.train(training)(torch.zeros(4, 2, 8, 8))


def test_synchronised_without_processes() -> None:
    chain = synchronise(a_chain())
    with pytest.raises(InputError, match="init_process_group"):
        chain(torch.randn(4, 2, 8, 8))
    synchronise(chain, None)(torch.randn(4, 2, 8, 8))


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


BAD: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], object], str]] = {
    "triton without a GPU": (
        lambda: ConvBlock(2, 4, 4, 2, impl="triton"), lambda m: m(draw(4, 2, 8, 8).float()),
        "impl='auto'.*TRITON_INTERPRET=1",
    ),
    "unknown impl": (
        lambda: ConvBlock(2, 4, 4, 2, impl="cuda"),  # type: ignore[arg-type]
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
    "map below the window": (
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
        lambda: Chain(ConvBlock(2, 4, 4, 2), nn.ReLU()),  # type: ignore[arg-type]
        lambda m: m(torch.zeros(4, 2, 8, 8)), "not of ReLU",
    ),
    "no block": (Chain, lambda m: m(torch.zeros(4, 2, 8, 8)), "without blocks"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_before_anything_happens(name: str) -> None:
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
        (lambda: ConvBlock(2, 4, 4, activation="gelu"), "gelu"),  # type: ignore[arg-type]
    ],
)
def test_bad_blocks_are_not_made(make: Callable[[], Block], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_one_value_a_channel_is_enough_to_evaluate() -> None:
    assert a_chain().eval()(torch.zeros(1, 2, 8, 8)).shape == (1, 1, 8, 8)


def test_meta_tensors_pass() -> None:
    assert a_chain().to("meta")(torch.zeros(4, 2, 8, 8, device="meta")).shape == (4, 1, 8, 8)


def test_a_1x1_convolution_of_a_1x1_map_stays_a_map() -> None:
    block = ConvBlock(5, 7, 1, padding=0).double()
    x = torch.randn(6, 5, 1, 1, dtype=torch.float64)
    expected = block.norm(F.conv2d(x, block.layer.weight, block.layer.bias))  # type: ignore[misc]
    torch.testing.assert_close(block(x), F.leaky_relu(expected, 0.1))
