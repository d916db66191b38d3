"""A chain that is quick to interpret, its twin in plain torch, and how the two are compared."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastinfogan.nn import Chain, ConvBlock, Images, LinearBlock, UpconvBlock


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
