"""What a side's program asks of a GPU, and keeps for backward: exact numbers, on any machine.

Runs in a worker over either side's code, so it leans on as little of it as it can, and a group of
counts that the code cannot give is told, not fatal.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

GROUPS = ("iteration", "saved", "kernels")
PRECISIONS: tuple[Any, ...] = ("bf16", "fp16", "fp32", "tf32")
TARGET = "sm_90"
_BATCH = {"meta": 128, "cpu": 2}

Counts = dict[str, int]


def count_all(only: Sequence[str] = GROUPS) -> dict[str, Any]:
    """Count.

    Args:
        only: which groups.

    Returns:
        "counts" by name, and "failed": why a group has none, or not all.
    """
    found: Counts = {}
    failed: dict[str, str] = {}
    groups: dict[str, Callable[[], Iterator[tuple[str, int]]]] = {
        "iteration": _iterations,
        "saved": _saved,
        "kernels": _kernels,
    }
    for group in only:
        try:
            for name, number in groups[group]():
                found[name] = max(number, found.get(name, 0))
        except Exception as error:  # whatever this side's code raises
            first = str(error).strip().partition("\n")[0]
            failed[group] = f"{type(error).__name__}: {first}"
    return {"counts": found, "failed": failed}


def _iterations() -> Iterator[tuple[str, int]]:
    from bench.counting.iteration import count
    from fastinfogan import experiments

    told = {
        "launches": "launches",
        "bytes moved": "bytes",
        "FLOPs": "flops",
        "host waits": "host_syncs",
        "allocations": "allocations",
    }
    for name in experiments.BASES:
        for precision in PRECISIONS:
            found = count(experiments.get(name), precision)
            for what, field in told.items():
                yield f"{what} of {name} in {precision}", getattr(found, field)


def _saved() -> Iterator[tuple[str, int]]:
    """What autograd keeps of each chain's forward, without parameters and buffers."""
    import torch

    from fastinfogan import experiments
    from fastinfogan_kernels.runtime.backend import native_available
    from fastinfogan_kernels.runtime.launch import recording

    for name in experiments.BASES:
        for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
            with recording():  # the kernels, on tensors without storage
                by_kernels = list(_saved_by(name, torch.device("meta"), dtype))
            natively = []
            if native_available():  # else plain torch's, which is not ours to count
                with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                    natively = list(_saved_by(name, torch.device("cpu"), torch.float32))
            for place, found in (("a GPU", by_kernels), ("a CPU", natively)):
                for part, number in found:
                    yield f"bytes saved by {name}'s {part} on {place} in {precision}", number


def _saved_by(
    name: str,
    device: Any,  # noqa: ANN401 - torch is imported late
    dtype: Any,  # noqa: ANN401
) -> Iterator[tuple[str, int]]:
    import torch

    from fastinfogan import experiments
    from fastinfogan.networks import InfoGAN

    e, batch = experiments.get(name), _BATCH[device.type]
    with torch.device("meta"):
        networks = InfoGAN(e).to(dtype).train()
    if device.type != "meta":
        networks.to_empty(device=device)
        with torch.no_grad():
            for each in (*networks.parameters(), *networks.buffers()):
                each.zero_()  # drawing weights would take most of the time
    with device:
        maps = torch.zeros((batch, e.height, e.width, e.channels), dtype=dtype)
        codes = torch.zeros((batch, e.latents.input_width), dtype=dtype)
    images = maps.permute(0, 3, 1, 2)
    _, number = _kept_by(networks.trunk, torch.cat([images, images]), 2)
    yield "trunk, real and generated images as two groups", number
    features, number = _kept_by(networks.trunk, images.requires_grad_())
    yield "trunk, generated images", number
    for part in ("d_head", "q_head"):
        yield part, _kept_by(getattr(networks, part), features.detach().requires_grad_())[1]
    yield "generator", _kept_by(networks.generator, codes)[1]


def _kept_by(chain: Any, x: Any, groups: int = 1) -> tuple[Any, int]:  # noqa: ANN401
    """A chain's result, and the bytes that are kept for backward, each storage once."""
    import torch

    from fastinfogan.nn.run import describe
    from fastinfogan_kernels.conv_block.autograd import fused_chain

    own = {t.untyped_storage()._cdata for t in (*chain.parameters(), *chain.buffers())}
    kept: dict[int, torch.Tensor] = {}  # holds them, so that no address is used twice

    def pack(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()._cdata
        if storage not in own:
            kept[storage] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        if x.device.type == "meta":  # torch has no autocast there, for which a chain asks
            layers, tensors = describe(chain.stages(), tuple(x.shape[1:]), len(x), groups)
            result = fused_chain(x, layers, tensors, groups)
        else:
            result = chain(x, groups)
    if result.grad_fn is None:
        raise RuntimeError("a chain's result has no way back")
    return result, sum(t.untyped_storage().nbytes() for t in kept.values())


def _kernels() -> Iterator[tuple[str, int]]:
    """Of each kernel the most of all launches, and the registers of each of its variants."""
    from bench.compiled import compile_launches, record_all
    from fastinfogan import experiments
    from fastinfogan_kernels.runtime.machine import MACHINES, assuming

    launches = []
    with assuming(MACHINES[TARGET]):
        for name in experiments.BASES:
            launches += record_all(replace(experiments.get(name), batch_size=_BATCH["meta"]))
    for each in compile_launches(launches, TARGET):
        kernel = each.kernel.removesuffix("_kernel")
        numbers = {
            "registers": each.registers,
            "stack bytes": each.stack,
            "double-precision instructions": each.f64,
        }
        for what, number in numbers.items():
            yield f"{what} of {kernel} for {TARGET}", number
        yield f"registers of {kernel} for {TARGET}: {each.variant}", each.registers
