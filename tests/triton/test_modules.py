"""The modules by the kernels, against the modules in plain torch, as people use them."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench.accuracy import check_accuracy
from fastinfogan.errors import InputError
from fastinfogan.nn import Chain, ConvBlock, Images, LinearBlock, fuse, synchronise
from fastinfogan_kernels.runtime.launch import recording
from tests.helpers.by_kernels import a_chain, draw, everything, on, twin_of, varied
from tests.helpers.compare import assert_same
from tests.helpers.ranks import run_ranks

RANKS = 2
FP32 = {"rtol": 1e-4, "atol": 2e-5}


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {k: p.grad.cpu() for k, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("training", [True, False])
def test_a_chain_by_the_kernels(training: bool, device: torch.device) -> None:
    chain = a_chain(device).train(training)
    twin = twin_of(chain)
    assert_same(everything(chain, draw()), everything(twin, draw()), **FP32)
    out = chain(draw().to(device))
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_groups_and_channels_last(device: torch.device) -> None:
    chain = a_chain(device, 3)
    twin = twin_of(chain)
    x = draw(4, 3).contiguous(memory_format=torch.channels_last)
    assert_same(everything(chain, x, groups=2), everything(twin, x, groups=2), **FP32)
    assert chain[1].norm.num_batches_tracked == 2


def test_images(device: torch.device) -> None:
    pixels = torch.randint(0, 256, (5, 8, 8, 1), dtype=torch.uint8)
    images = Images(pixels, torch.tensor([4, 0, 0, 3]), 2 / 255, -1.0)
    for training in (True, False):
        chain = a_chain(device).train(training)
        twin = twin_of(chain)
        assert_same(everything(chain, images), everything(twin, images), **FP32)


def test_images_that_are_learned(device: torch.device) -> None:
    """Their gradient goes to the image that was gathered."""
    found = []
    for chain in (a_chain(device), twin_of(a_chain(device))):
        where = next(chain.parameters()).device
        data = draw().permute(0, 2, 3, 1).contiguous().to(where).requires_grad_()
        index = torch.tensor([3, 1, 1], device=where)
        chain(Images(data, index, 0.5, 0.1)).square().sum().backward()
        assert data.grad is not None
        found.append(data.grad.cpu())
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("training", [True, False])
def test_compiled(training: bool, device: torch.device) -> None:
    chain = a_chain(device).train(training)
    twin = twin_of(chain)
    torch._dynamo.reset()
    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager")
    for step in range(2):
        x = draw(seed=step)
        assert_same(everything(chain, x, compiled), everything(twin, x), **FP32)


def test_a_fused_model(device: torch.device) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(4, 2, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip
    twin = copy.deepcopy(model)
    assert len(fuse(model.to(device), impl="triton").fused) == 1
    with recording(run=True) as launches:
        assert_same(everything(model, draw()), everything(twin, draw()), **FP32)
    assert len(launches) > 5


def test_two_forwards_before_their_backwards(device: torch.device) -> None:
    """The first one's backward does not read the running statistics that the second one updates."""
    chain = a_chain(device)
    twin = twin_of(chain)
    grads = []
    for module, where in ((chain, device), (twin, "cpu")):
        outs = [module(draw(seed=seed).to(where)) for seed in (1, 2)]
        for out in outs:
            out.square().sum().backward()
        grads.append(gradients(module))
    assert_same(*grads, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_fused_model_lays_memory_out_as_before(
    memory_format: torch.memory_format, device: torch.device
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    twin = copy.deepcopy(model)
    fuse(model.to(device), impl="triton")
    x = draw(2, 3).contiguous(memory_format=memory_format)
    assert model(x.to(device)).stride() == twin(x).stride()


def test_parameters_and_statistics_in_16_bits(half: torch.dtype, device: torch.device) -> None:
    chain = varied(Chain(ConvBlock(3, 4, 4, 2), ConvBlock(4, 5, 4, 2), impl="triton")).to(half)
    twin = twin_of(chain)
    x, rounding = draw(8, 3).to(half), torch.finfo(half).eps
    out = chain.to(device)(x.to(device)).cpu()
    torch.testing.assert_close(out, twin(x), rtol=10 * rounding, atol=10 * rounding)
    for actual, expected in zip(chain.buffers(), twin.buffers(), strict=True):
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual.cpu(), expected, rtol=2 * rounding, atol=2 * rounding)


@pytest.mark.parametrize("training", [True, False])
def test_gradient_penalty(training: bool, device: torch.device) -> None:
    grads = []
    chain = a_chain(device).train(training)
    for module, where in ((chain, device), (twin_of(chain), "cpu")):
        x = draw().to(where).requires_grad_()
        (slopes,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
        slopes.flatten(1).norm(dim=1).sub(1).square().sum().backward()
        grads.append(gradients(module))
    assert_same({k: v for k, v in grads[0].items() if k in grads[1]}, grads[1], **FP32)
    assert all((v == 0).all() for k, v in grads[0].items() if k not in grads[1])


def test_gradient_penalty_of_images_without_an_index(device: torch.device) -> None:
    """Their scale and shift are part of what is differentiated twice."""
    grads = []
    for module, where in ((a_chain(device), device), (twin_of(a_chain(device)), "cpu")):
        images = on(Images(draw().permute(0, 2, 3, 1).contiguous(), None, 0.5, 0.3), where)
        weights = [module[0].layer.weight, module[2].layer.weight]
        first = torch.autograd.grad(module(images).square().sum(), weights, create_graph=True)
        sum(g.square().sum() for g in first).backward()  # type: ignore[union-attr]
        grads.append({"0.layer.weight": gradients(module)["0.layer.weight"]})
    assert_same(*grads, rtol=1e-4, atol=1e-3)


def test_autocast(half: torch.dtype, device: torch.device) -> None:
    """Output and fp32 gradients are as near to those in fp32 as PyTorch's under autocast."""
    chain = a_chain(device)
    twin = twin_of(chain)
    found = []
    for module, where, enabled in (
        (chain, device, True),
        (twin, "cpu", True),
        (twin, "cpu", False),
    ):
        module.zero_grad()
        with torch.autocast(torch.device(where).type, half, enabled):
            out = module(draw().to(where))
        assert out.dtype == (half if enabled else torch.float32)
        out.float().square().sum().backward()
        assert {p.grad.dtype for p in module.parameters() if p.grad is not None} == {torch.float32}
        of_norm = {"1.layer.bias", "2.layer.bias", "3.layer.bias"}  # zero but for rounding
        of_rest = {k: v for k, v in gradients(module).items() if k not in of_norm}
        found.append({"out": out.detach().cpu(), **of_rest})
    check_accuracy(*found, half, kinks=True)
    x = draw().to(device).requires_grad_()
    with torch.autocast(device.type, half):
        out = chain(x)
    (slopes,) = torch.autograd.grad(out.float().sum(), x, create_graph=True)
    slopes.square().sum().backward()


def test_types_that_do_not_mix(device: torch.device) -> None:
    chain = a_chain(device)
    tracked = chain[1].norm.num_batches_tracked
    with pytest.raises(InputError, match=r"float16.*float32.*autocast"):
        chain(draw().half().to(device))
    with pytest.raises(InputError, match=r"fp32, fp16 or bf16, not torch\.float64"):
        a_chain(device).double()(draw().double().to(device))
    assert tracked == 0


def one_step(rank: int) -> dict[str, Tensor]:
    chain = synchronise(
        varied(Chain(ConvBlock(1, 4, 4, 2), LinearBlock(4 * 16, 3, slope=0.2), impl="triton"))
    )
    return everything(chain, batch().chunk(RANKS)[rank])


def batch() -> Tensor:
    return torch.cat([draw(2), draw(2, seed=2) * 2 + 1])


def work(rank: int, folder: Path) -> None:
    torch.manual_seed(5)
    torch.save(one_step(rank), folder / f"rank {rank}")


def test_synchronised_statistics(tmp_path: Path, device: torch.device) -> None:
    if device.type == "cuda":
        pytest.skip("two ranks need two GPUs")
    run_ranks(work, RANKS, tmp_path)
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
