"""What training takes of the GPU's memory, and what a network keeps for its way back."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bench.baselines import BEST, EAGER
from bench.baselines.iteration import loop
from bench.cases.iteration import images_for, iteration_for
from bench.counting.saved import saved_bytes
from bench.gpu_report.stage import Context, main
from bench.gpu_report.workload import FIVE, experiment, fresh_memory
from fastinfogan.engine.execution import EagerExecution, choose_execution
from fastinfogan.engine.precision import narrowed
from fastinfogan.experiments import Experiment
from fastinfogan.networks import InfoGAN
from fastinfogan.reference import Reference
from fastinfogan_kernels.runtime.backend import native_available


def stage(context: Context) -> None:
    """At the usual batch, then at a large one."""
    names = ("mnist",) if context.dry else FIVE
    for batch in (4,) if context.dry else (128, 1024):
        for name in names:
            label = f"{name}, batch {batch}"
            e = experiment(name, dry=context.dry, batch=batch)
            for side in ("captured", "call by call", BEST, EAGER):
                context.run(
                    f"{label}, {side}",
                    lambda e=e, side=side: _peak(context, e, side),  # type: ignore[misc]
                )
            if context.dry and not native_available():
                why = "on a CPU it needs C++ for CPU tensors, which is not compiled"
                context.note(f"{label}, kept", why)
            elif batch <= 128:
                context.run(f"{label}, kept", lambda e=e: _kept(context, e))  # type: ignore[misc]


def _peak(context: Context, e: Experiment, side: str) -> Mapping[str, Any]:
    """Bytes at the peak of three iterations, images and all."""
    device = context.device
    before = 0
    with fresh_memory(device):
        if device.type == "cuda":
            before = torch.cuda.memory_allocated()
        images = images_for(e, max(2 * e.batch_size, 64 if context.dry else 4096), device)
        if side in (BEST, EAGER):
            other = loop(side, e, images, e.batch_size, torch.bfloat16)
            for _ in range(3):
                other.run()
        else:
            kind = EagerExecution if side == "call by call" else choose_execution("auto", device)[0]
            kind(iteration_for(e, "bf16", e.batch_size, images)).run(0, 3)
    found: dict[str, Any] = {"experiment": e.name, "batch": e.batch_size, "side": side}
    if device.type == "cuda":
        torch.cuda.synchronize()
        found["MiB allocated"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
        found["MiB before"] = round(before / 2**20, 1)
        found["MiB reserved"] = round(torch.cuda.max_memory_reserved() / 2**20, 1)
    return found


def _kept(context: Context, e: Experiment) -> Mapping[str, Any]:
    """Bytes that the trunk keeps between its forward and its backward, beside its weights."""
    device, dtype = context.device, torch.bfloat16
    shape = (e.batch_size, e.channels, e.height, e.width)
    x = torch.randn(shape, device=device).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    ours, _ = narrowed(InfoGAN(e).to(device).train(), dtype)
    theirs = Reference(e, 1).trunk.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def usual() -> Tensor:
        with torch.autocast(device.type, dtype):
            out: Tensor = theirs(x)
        return out

    found = {
        "ours": saved_bytes(lambda: ours.trunk(x), ours.trunk),
        "usual": saved_bytes(usual, theirs),
    }
    mib = {f"MiB kept, {side}": round(size / 2**20, 3) for side, size in found.items()}
    return {"experiment": e.name, **mib, "ratio": round(found["ours"] / found["usual"], 3)}


if __name__ == "__main__":
    main(stage, "memory")
