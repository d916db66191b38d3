"""The modules by the kernels, against the modules in plain torch, as people use them."""

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing import spawn

from fastinfogan.errors import InputError
from fastinfogan.nn import Chain, ConvBlock, Images, LinearBlock, fuse, synchronise
from fastinfogan_kernels.runtime.launch import recording
from tests.helpers.by_kernels import a_chain, assert_same, draw, everything, twin_of, varied

RANKS = 2


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


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_fused_model_lays_memory_out_as_before(memory_format: torch.memory_format) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    twin = copy.deepcopy(model)
    fuse(model, impl="triton")
    x = draw(2, 3).contiguous(memory_format=memory_format)
    assert model(x).stride() == twin(x).stride()


def test_parameters_and_statistics_in_half_precision() -> None:
    chain = varied(Chain(ConvBlock(3, 4, 4, 2), ConvBlock(4, 5, 4, 2), impl="triton")).half()
    twin = twin_of(chain)
    x = draw(8, 3).half()
    torch.testing.assert_close(chain(x), twin(x), rtol=1e-2, atol=1e-2)
    for ours, theirs in zip(chain.buffers(), twin.buffers(), strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-3)


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
