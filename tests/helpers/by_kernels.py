"""A chain that is quick to interpret, its twin in plain torch, and a pass of either."""

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from fastinfogan.nn import Chain, ConvBlock, Images, LinearBlock, UpconvBlock


def a_chain(device: torch.device, channels: int = 1) -> Chain:
    """Every kind of block, at widths that are quick to interpret."""
    torch.manual_seed(3)
    chain = Chain(
        ConvBlock(channels, 4, 4, 2, batch_norm=False),
        ConvBlock(4, 5, 4, 2),
        LinearBlock(5 * 2 * 2, 6, activation="relu"),
        LinearBlock(6, 3 * 2 * 2, shape=(2, 2, 3), activation="relu"),
        UpconvBlock(3, 1, 4, 2, batch_norm=False, activation="sigmoid"),
        impl="triton",
    )
    return varied(chain).to(device)


def varied(chain: Chain) -> Chain:
    """Scale weights and shift statistics so that every part matters."""
    with torch.no_grad():
        for name, tensor in (*chain.named_parameters(), *chain.named_buffers()):
            if name.endswith("layer.weight"):
                tensor.mul_(10)
            elif tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 0.2)
    return chain.requires_grad_()


def twin_of(chain: Chain) -> Chain:
    """The same in plain torch, on the CPU."""
    twin = copy.deepcopy(chain).cpu()
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
    """Output, gradients and buffers after one forward and backward on the module's device.

    Returns:
        By name, on the CPU; the input's gradient is "x".
    """
    module.zero_grad()
    device = next(module.parameters()).device
    x = x.detach().clone().to(device).requires_grad_() if isinstance(x, Tensor) else on(x, device)
    run = module if run is None else run
    out = run(x, groups) if groups > 1 else run(x)
    weights = torch.linspace(-1, 1, out.numel()).view(out.shape).to(device)
    (out * weights).sum().backward()
    found = {"out": out.detach()}
    if isinstance(x, Tensor):
        assert x.grad is not None
        found["x"] = x.grad
    found |= {k: p.grad.clone() for k, p in module.named_parameters() if p.grad is not None}
    found |= {k: b.clone() for k, b in module.named_buffers()}
    return {name: t.cpu() for name, t in found.items()}


def on(images: Images, device: torch.device | str) -> Images:
    """The same images on a device."""
    index = None if images.index is None else images.index.to(device)
    return replace(images, data=images.data.to(device), index=index)
