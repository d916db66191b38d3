"""The modules by the kernels, against the modules in plain torch, as people use them."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.multiprocessing import spawn
from torch.utils._python_dispatch import TorchDispatchMode

from fastinfogan import experiments
from fastinfogan.errors import InputError
from fastinfogan.kernels import chain as ops_of_a_chain
from fastinfogan.kernels.launch import recording
from fastinfogan.networks import InfoGAN
from fastinfogan.nn import Chain, ConvBlock, Images, LinearBlock, UpconvBlock, fuse, synchronise

RANKS = 2


def a_chain(images: int = 1) -> Chain:
    """Every kind of block, at widths that are quick to interpret."""
    torch.manual_seed(3)
    chain = Chain(
        ConvBlock(images, 4, 4, 2, batch_norm=False),
        ConvBlock(4, 5, 4, 2),
        LinearBlock(5 * 2 * 2, 6, activation="relu"),
        LinearBlock(6, 3 * 2 * 2, shape=(2, 2, 3), activation="relu"),
        UpconvBlock(3, 1, 4, 2, batch_norm=False, activation="sigmoid"),
        impl="triton",
    )
    return varied(chain)


def varied(chain: Chain) -> Chain:
    """Weights and statistics that make every part count."""
    with torch.no_grad():
        for name, tensor in (*chain.named_parameters(), *chain.named_buffers()):
            if name.endswith("layer.weight"):
                tensor.mul_(10)
            elif tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 0.2)
    return chain.requires_grad_()


def twin_of(chain: Chain) -> Chain:
    """The same in plain torch."""
    twin = copy.deepcopy(chain)
    twin.impl = "reference"
    return twin


def draw(batch: int = 4, channels: int = 1, seed: int = 1) -> Tensor:
    return torch.randn(batch, channels, 8, 8, generator=torch.Generator().manual_seed(seed))


def everything(
    module: nn.Module,
    x: Tensor | Images,
    run: Callable[..., Tensor] | None = None,
    groups: int = 1,
) -> dict[str, Tensor]:
    module.zero_grad()
    if isinstance(x, Tensor):
        x = x.detach().clone().requires_grad_()
    run = module if run is None else run
    out = run(x, groups) if groups > 1 else run(x)
    (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    found = {"out": out.detach()}
    if isinstance(x, Tensor):
        assert x.grad is not None
        found["x"] = x.grad
    found |= {k: p.grad.clone() for k, p in module.named_parameters() if p.grad is not None}
    return found | {k: b.clone() for k, b in module.named_buffers()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], atol: float = 2e-5) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(
            one[name], other[name], rtol=1e-4, atol=atol, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("training", [True, False])
def test_a_chain_by_the_kernels(training: bool) -> None:
    chain = a_chain().train(training)
    twin = twin_of(chain)
    assert_same(everything(chain, draw()), everything(twin, draw()))
    out = chain(draw())
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_groups_and_channels_last() -> None:
    chain = a_chain(3)
    twin = twin_of(chain)
    x = draw(4, 3).contiguous(memory_format=torch.channels_last)
    assert_same(everything(chain, x, groups=2), everything(twin, x, groups=2))
    assert chain[1].norm.num_batches_tracked == 2


def test_images() -> None:
    pixels = torch.randint(0, 256, (5, 8, 8, 1), dtype=torch.uint8)
    images = Images(pixels, torch.tensor([4, 0, 0, 3]), 2 / 255, -1.0)
    for training in (True, False):
        chain = a_chain().train(training)
        twin = twin_of(chain)
        assert_same(everything(chain, images), everything(twin, images))


def test_images_that_are_learned() -> None:
    """Their gradient goes to the image that was gathered."""
    found = []
    for chain in (a_chain(), twin_of(a_chain())):
        data = draw().permute(0, 2, 3, 1).contiguous().requires_grad_()
        chain(Images(data, torch.tensor([3, 1, 1]), 0.5, 0.1)).square().sum().backward()
        assert data.grad is not None
        found.append(data.grad)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("training", [True, False])
def test_compiled(training: bool) -> None:
    chain = a_chain().train(training)
    twin = twin_of(chain)
    torch._dynamo.reset()
    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager")
    for step in range(2):
        x = draw(seed=step)
        assert_same(everything(chain, x, compiled), everything(twin, x))


def test_a_fused_model() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(4, 2, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip
    twin = copy.deepcopy(model)
    assert len(fuse(model, impl="triton").fused) == 1
    with recording(run=True) as launches:
        assert_same(everything(model, draw()), everything(twin, draw()))
    assert len(launches) > 5


def test_two_forwards_before_their_backwards() -> None:
    """The running statistics that the second one updates are none of the first one's business."""
    chain = a_chain()
    twin = twin_of(chain)
    grads = []
    for module in (chain, twin):
        outs = [module(draw(seed=seed)) for seed in (1, 2)]
        for out in outs:
            out.square().sum().backward()
        grads.append({k: p.grad for k, p in module.named_parameters()})
    assert_same(*grads, atol=1e-4)  # type: ignore[arg-type]


@pytest.mark.parametrize("training", [True, False])
def test_gradient_penalty(training: bool) -> None:
    grads = []
    chain = a_chain().train(training)
    for module in (chain, twin_of(chain)):
        x = draw().requires_grad_()
        (slopes,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
        slopes.flatten(1).norm(dim=1).sub(1).square().sum().backward()
        grads.append({k: p.grad for k, p in module.named_parameters() if p.grad is not None})
    kept = {k: v for k, v in grads[0].items() if k in grads[1]}
    assert_same(kept, grads[1])  # type: ignore[arg-type]
    assert all((v == 0).all() for k, v in grads[0].items() if k not in grads[1])


def test_gradient_penalty_of_images_without_an_index() -> None:
    """Their scale and shift are part of what is differentiated twice."""
    grads = []
    for module in (a_chain(), twin_of(a_chain())):
        images = Images(draw().permute(0, 2, 3, 1).contiguous(), None, 0.5, 0.3)
        weights = [module[0].layer.weight, module[2].layer.weight]
        first = torch.autograd.grad(module(images).square().sum(), weights, create_graph=True)
        sum(g.square().sum() for g in first).backward()  # type: ignore[union-attr]
        grads.append({k: p.grad for k, p in module.named_parameters() if k in ("0.layer.weight",)})
    assert_same(*grads, atol=1e-3)  # type: ignore[arg-type]


def test_autocast() -> None:
    chain = a_chain()
    twin = twin_of(chain)
    x = draw()
    with torch.autocast("cpu", torch.float16):
        out = chain(x)
        theirs = twin(x)
    assert out.dtype == theirs.dtype == torch.float16
    torch.testing.assert_close(out, theirs, rtol=2e-2, atol=5e-3)
    out.float().square().sum().backward()
    theirs.float().square().sum().backward()
    for ours, reference in zip(chain.parameters(), twin.parameters(), strict=True):
        assert ours.grad is not None
        assert ours.grad.dtype == torch.float32
        assert reference.grad is not None
        scale = reference.grad.norm() + 0.05
        assert (ours.grad - reference.grad).norm() / scale < 0.1
    x.requires_grad_()
    with torch.autocast("cpu", torch.float16):
        out = chain(x)
    (slopes,) = torch.autograd.grad(out.float().sum(), x, create_graph=True)
    slopes.square().sum().backward()


def test_types_that_do_not_mix() -> None:
    chain = a_chain()
    tracked = chain[1].norm.num_batches_tracked
    with pytest.raises(InputError, match=r"float16.*float32.*autocast"):
        chain(draw().half())
    with pytest.raises(InputError, match=r"fp32, fp16 or bf16, not torch\.float64"):
        a_chain().double()(draw().double())
    assert tracked == 0


def kernels_of(chain: Chain, x: Tensor | Images) -> list[str]:
    """Operations of a backward pass."""
    out = chain(x)
    with operations() as names:
        out.sum().backward()
    return names


class _Names(TorchDispatchMode):
    def __init__(self, names: list[str], calls: list[Any] | None = None) -> None:
        super().__init__()
        self.names = names
        self.calls = calls

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        if func.namespace == "fastinfogan":
            self.names.append(func._schema.name.partition("::")[2])
            if self.calls is not None:
                self.calls.append((func, tuple(args)))
        return func(*args, **(kwargs or {}))


@contextmanager
def operations(calls: list[Any] | None = None) -> Iterator[list[str]]:
    names: list[str] = []
    with _Names(names, calls):
        yield names


def test_frozen_weights_cost_nothing() -> None:
    def count(*trained: str, needs_input: bool = False) -> tuple[int, int, int]:
        chain = a_chain()
        for name, p in chain.named_parameters():
            p.requires_grad_(name.startswith(trained))
        names = kernels_of(chain, draw().requires_grad_(needs_input))
        weights = names.count("weight_gradient") + names.count("image_weight_gradient")
        return weights, names.count("data_gradient"), names.count("norm_gradient")

    everything_trained = ("0", "1", "2", "3", "4")
    assert count(*everything_trained) == (5, 4, 3)
    assert count(*everything_trained, needs_input=True) == (5, 5, 3)
    assert count("4") == (1, 0, 0)
    assert count("3.layer.weight") == (1, 1, 1)
    assert count("3.norm") == (0, 1, 1)
    assert count("2.layer.weight", "4.layer") == (2, 2, 2)
    assert count(needs_input=True) == (0, 5, 3)


def test_frozen_weights_launch_no_kernels() -> None:
    chain = a_chain()
    for p in chain[:4].parameters():
        p.requires_grad_(False)
    out = chain(draw())
    with recording(run=True) as launches:
        out.sum().backward()
    names = [launch.name for launch in launches]
    assert not any("gather_gemm" in name for name in names)
    assert sum("weight_gradient" in name for name in names) == 1


def test_operations_keep_their_promises(monkeypatch: pytest.MonkeyPatch) -> None:
    """What opcheck says of every registered operation, with the maps that a chain hands it."""
    # Behind a block without batch norm nobody reads a tile's second sum, and it is not written.
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **more: empty(*size, **more).zero_())
    chain = a_chain()
    calls: list[Any] = []
    pixels = torch.randint(0, 256, (5, 8, 8, 1), dtype=torch.uint8)
    with operations(calls):
        everything(chain, draw())
        wide = Chain(ConvBlock(8, 3, 4, 2), ConvBlock(3, 2, 1, batch_norm=False), impl="triton")
        everything(varied(wide), draw(2, 8).contiguous(memory_format=torch.channels_last))
        for norm in (True, False):
            first = Chain(ConvBlock(1, 3, 4, 2, batch_norm=norm), impl="triton")
            everything(varied(first), Images(pixels, torch.tensor([4, 0, 3]), 0.1))
    seen: dict[str, int] = {}
    for operation, arguments in calls:
        name = operation._schema.name
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 2:
            continue
        fixed = tuple(a.detach() if isinstance(a, Tensor) else a for a in arguments)
        torch.library.opcheck(operation, fixed)
    registered = [op for op in vars(ops_of_a_chain).values() if isinstance(op, OpOverload)]
    assert {op._schema.name for op in registered} == set(seen)


def bytes_saved(run: Callable[[], Tensor], parameters: list[nn.Parameter]) -> int:
    """Bytes kept for backward, each storage once, without the parameters'."""
    kept: dict[int, Tensor] = {}

    def pack(t: Tensor) -> Tensor:
        if not any(t.untyped_storage()._cdata == p.untyped_storage()._cdata for p in parameters):
            kept[t.untyped_storage()._cdata] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = run()
    assert out.grad_fn is not None
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def eager(chain: Chain) -> nn.Sequential:
    """A chain as one writes it in torch.nn."""
    layers: list[nn.Module] = []
    for block in chain:
        if isinstance(block, LinearBlock) and not any(isinstance(m, nn.Flatten) for m in layers):
            layers.append(nn.Flatten())
        layers.append(block.layer)
        if block.norm is not None:
            layers.append(block.norm)
        layers.append(nn.LeakyReLU(block.slope))
    return nn.Sequential(*layers)


@pytest.mark.parametrize("name", ["mnist", "svhn"])
def test_bytes_saved_for_backward(name: str) -> None:
    experiment = experiments.get(name)
    trunk = InfoGAN(experiment).trunk.train()
    trunk.impl = "triton"
    parameters = list(trunk.parameters())
    x = torch.randn(4, experiment.channels, experiment.height, experiment.width)
    x = x.contiguous(memory_format=torch.channels_last)
    with recording():
        ours = bytes_saved(lambda: trunk(x), parameters)
    theirs = bytes_saved(lambda: eager(trunk)(x), parameters)
    print(f"{name}: {ours} bytes, eager {theirs}, ratio {ours / theirs:.3f}")
    assert ours <= 0.55 * theirs


def shared(rank: int) -> dict[str, Tensor]:
    chain = synchronise(
        varied(Chain(ConvBlock(1, 4, 4, 2), LinearBlock(4 * 16, 3, slope=0.2), impl="triton"))
    )
    return everything(chain, batch().chunk(RANKS)[rank])


def batch() -> Tensor:
    return torch.cat([draw(2), draw(2, seed=2) * 2 + 1])


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(5)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=RANKS
    )
    torch.save(shared(rank), folder / f"rank {rank}")
    dist.destroy_process_group()


def test_shared_statistics_by_the_kernels(tmp_path: Path) -> None:
    spawn(work, (tmp_path,), RANKS)  # type: ignore[no-untyped-call]
    found = [torch.load(tmp_path / f"rank {rank}") for rank in range(RANKS)]
    torch.manual_seed(5)
    chain = Chain(ConvBlock(1, 4, 4, 2), LinearBlock(4 * 16, 3, slope=0.2), impl="reference")
    module = varied(chain)
    x = batch().requires_grad_()
    out = module(x)
    weight = torch.linspace(-1, 1, out.numel() // RANKS).view(2, 3)
    (out * torch.cat([weight] * RANKS)).sum().backward()
    torch.testing.assert_close(torch.cat([f["out"] for f in found]), out.detach())
    torch.testing.assert_close(torch.cat([f["x"] for f in found]), x.grad, rtol=1e-4, atol=1e-5)
    for name, p in module.named_parameters():
        if name.endswith("layer.bias"):
            continue  # in front of batch norm: zero, in torch rounding noise
        summed = sum(f[name] for f in found)
        torch.testing.assert_close(summed, p.grad, rtol=1e-4, atol=1e-5)
    for name, buffer in module.named_buffers():
        for f in found:
            torch.testing.assert_close(f[name], buffer)
