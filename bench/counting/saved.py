"""Bytes that autograd saves in a forward pass for the backward pass."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from fastinfogan import experiments
from fastinfogan.networks import InfoGAN
from fastinfogan_kernels.conv_block.autograd import fused_chain
from fastinfogan_kernels.runtime.launch import native_available, recording

_BATCH = {"meta": 128, "cpu": 2}


def saved_bytes(run: Callable[[], Tensor], module: nn.Module) -> int:
    """Count the bytes saved for backward, each storage once, without the module's own tensors.

    Args:
        run: the forward pass.
        module: whose parameters and buffers are not counted.
    """
    own = {t.untyped_storage()._cdata for t in (*module.parameters(), *module.buffers())}
    saved: dict[int, Tensor] = {}  # holds the tensors, so that no address is used twice

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage()._cdata not in own:
            saved[t.untyped_storage()._cdata] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = run()
    assert out.grad_fn is not None
    return sum(t.untyped_storage().nbytes() for t in saved.values())


def chains() -> Iterator[tuple[str, int]]:
    """Count the bytes that each chain of each experiment saves, by the kernels and in C++.

    Yields:
        A name and a number of bytes.
    """
    for name in experiments.EXPERIMENTS:
        for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
            with recording():  # the kernels, on tensors without storage
                by_kernels = list(_of_networks(name, torch.device("meta"), dtype))
            natively = []
            if native_available():  # else it is plain torch's, which is not ours to count
                with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                    natively = list(_of_networks(name, torch.device("cpu"), torch.float32))
            for device, found in (("a GPU", by_kernels), ("a CPU", natively)):
                for chain, number in found:
                    yield f"bytes saved by {name}'s {chain} on {device} in {precision}", number


def _of_networks(name: str, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, int]]:
    e, batch = experiments.get(name), _BATCH[device.type]
    with torch.device("meta"):
        networks = InfoGAN(e).to(dtype).train()
    if device.type != "meta":
        networks.to_empty(device=device)
        with torch.no_grad():
            for t in (*networks.parameters(), *networks.buffers()):
                t.zero_()  # drawing weights would take most of the time
    with device:
        images = torch.zeros((batch, e.height, e.width, e.channels), dtype=dtype)
        codes = torch.zeros((batch, e.latents.input_width), dtype=dtype)
    images = images.permute(0, 3, 1, 2)

    def saved(chain: nn.Module, x: Tensor, groups: int = 1) -> int:
        return saved_bytes(lambda: _run(chain, x, groups), chain)

    yield (
        "trunk, real and generated images as two groups",
        saved(networks.trunk, torch.cat([images, images]), 2),
    )
    images.requires_grad_()
    yield "trunk, generated images", saved(networks.trunk, images)
    features = _run(networks.trunk, images, 1).detach()
    for head in ("d_head", "q_head"):
        yield head, saved(getattr(networks, head), features.clone().requires_grad_())
    yield "generator", saved(networks.generator, codes)


def _run(chain: nn.Module, x: Tensor, groups: int) -> Tensor:
    if x.device.type != "meta":
        found: Tensor = chain(x, groups)
        return found
    # torch has no autocast on meta tensors, for which a chain asks.
    calls = chain.calls(tuple(x.shape[1:]), len(x), groups)  # type: ignore[operator]
    return fused_chain(x, [c.layer for c in calls], [c.tensors for c in calls], groups)
