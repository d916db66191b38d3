"""Compile every kernel that the experiments launch, ahead of time, with no GPU.

    python -m bench.compiled --target sm_90 [--experiment mnist] [--json]

The experiments' networks, and what an iteration launches around them, are walked on tensors without
storage; each launch is compiled with the specialization it would have, for sm_80, sm_90, sm_100 or
gfx942, and its registers, stack, shared memory and instructions are read from the binary.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from fastinfogan import experiments
from fastinfogan.errors import InputError
from fastinfogan.experiments import Experiment
from fastinfogan.networks import InfoGAN
from fastinfogan.nn import Chain
from fastinfogan.nn.run import describe
from fastinfogan_kernels.adam.adam import OneLaunch, Rates, Scaling
from fastinfogan_kernels.adam.loss_scale import LossScale
from fastinfogan_kernels.adam.multi_tensor import Slot
from fastinfogan_kernels.conv_block.autograd import fused_chain
from fastinfogan_kernels.conv_block.image_conv import Images
from fastinfogan_kernels.inputs.draw import draw_codes
from fastinfogan_kernels.inputs.real_images import real_images
from fastinfogan_kernels.objective.heads import objective_launches
from fastinfogan_kernels.objective.metrics import accumulate
from fastinfogan_kernels.philox import Stream
from fastinfogan_kernels.runtime.launch import Launch, recording
from fastinfogan_kernels.runtime.machine import MACHINES, assuming

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
META = torch.device("meta")


@dataclass(frozen=True)
class Compiled:
    """What a launch became.

    Attributes:
        kernel: its name.
        variant: the constexpr arguments that tell it from its siblings.
        target: what it was compiled for.
        registers: of a thread.
        stack: bytes of a thread, spilled or indexed.
        shared: bytes of shared memory of a program.
        matrix: matrix instructions by name (wgmma, tcgen05, mma, mfma), those that occur.
        async_copies: cp.async and TMA copies.
        f64: double-precision instructions.
        launches: how often the walk launches it.
    """

    kernel: str
    variant: str
    target: str
    registers: int
    stack: int
    shared: int
    matrix: dict[str, int]
    async_copies: int
    f64: int
    launches: int


class _NoDevice:
    """Stands in for Triton's driver: says what to compile for, and runs nothing."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return META

    def map_python_to_cpp_type(self, kind: str) -> str:
        return kind

    @classmethod
    def is_active(cls) -> bool:
        return True


def walk(
    name: str, dtype: torch.dtype = torch.bfloat16, batch: int = 128, *, training: bool = True
) -> dict[str, list[Launch]]:
    """The launches of an experiment's networks, without running them.

    Args:
        name: of the experiment.
        dtype: of the maps; weights are fp32.
        batch: images in a step.
        training: forward and backward; else evaluation's forward.

    Returns:
        By part: "trunk" (D step: real images as uint8, and generated ones, as two groups),
        "trunk of G" (G step: with the images' gradient), "generator", "q_head", "d_head"; and in
        training "around": real images, codes, objective, measures and Adam.
    """
    e = experiments.get(name)
    with torch.device(META):
        networks = InfoGAN(e).train(training)
    pixels = torch.empty((2 * batch, e.height, e.width, e.channels), dtype=torch.uint8, device=META)
    index = torch.empty(2 * batch, dtype=torch.int64, device=META)
    real = Images(pixels, index, 1 / 255, 0.0, dtype)
    codes = torch.empty((batch, e.latents.input_width), dtype=dtype, device=META)
    image = torch.empty((batch, e.height, e.width, e.channels), dtype=dtype, device=META).permute(
        0, 3, 1, 2
    )
    parts: dict[str, tuple[Chain, Any, int]] = {
        "trunk": (networks.trunk, real, 2),
        "trunk of G": (networks.trunk, image.requires_grad_(training), 1),
        "generator": (networks.generator, codes, 1),
    }
    found = {part: _launches(*arguments, training) for part, arguments in parts.items()}
    with recording():
        features = fused_chain(image, *_described(networks.trunk, image, 1), 1)
    features = features.detach().requires_grad_(training)
    for part, chain in (("d_head", networks.d_head), ("q_head", networks.q_head)):
        found[part] = _launches(chain, features, 1, training)
    if training:
        found["around"] = _around(e, networks, pixels, dtype, batch)
    return found


def _around(
    e: Experiment, networks: InfoGAN, pixels: torch.Tensor, dtype: torch.dtype, batch: int
) -> list[Launch]:
    """What an iteration launches beside its networks' blocks."""
    spec, codes = e.latents, len(e.latents.codes)

    def empty(*shape: int, of: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=of, device=META)

    counter = empty(of=torch.int64)
    trunk = describe(networks.trunk.stages(), (e.channels, e.height, e.width), batch, 1)[1]
    # The heads' last layers stand at their ends: a weight, then a bias.
    of_d, of_q = (
        list(head.parameters())[-2].shape[1] for head in (networks.d_head, networks.q_head)
    )
    out = empty(batch, *pixels.shape[1:], of=dtype)
    with recording() as launches:
        for augmentation in ("none", "affine"):
            real_images(pixels, 0, counter, out, augmentation=augmentation)
            real_images(pixels, 0, counter, out, augmentation=augmentation, in_order=True)
        draw_codes(spec, 0, counter, Stream.D_STEP, batch, streams=2, device=META, dtype=dtype)
        slots = []
        for weight in (layer.weight for layer in trunk):
            like = torch.empty_like(weight)
            narrow = None if dtype == torch.float32 else torch.empty_like(weight, dtype=dtype)
            gradient = like if narrow is None else narrow
            slots.append(Slot(weight, gradient, like, like, empty(), narrow))
        scaled = LossScale([0.0] * (1 + codes), META) if dtype == torch.float16 else None
        problems = empty(1, of=torch.int32)
        adam = OneLaunch(META)
        if scaled:
            adam.find_overflow(slots, problems)
        scaling = Scaling(problems, scaled.divisor if scaled else None)
        adam.update(slots, Rates(1e-3, 0.5, 0.999, 1e-8), scaling)
        accumulate(
            empty(2), empty(1), empty(codes), empty(codes), problems, empty(2 + codes),
            empty(3, of=torch.int32), scaled, by_triton=True,
        )  # fmt: skip
    return launches + objective_launches(spec, dtype, batch, (of_q, of_d))


def _described(chain: Chain, x: Any, groups: int) -> tuple[Any, Any]:  # noqa: ANN401
    if isinstance(x, Images):
        shape: tuple[int, ...] = (x.data.shape[3], *x.data.shape[1:3])
        batch = x.count
    else:
        shape, batch = tuple(x.shape[1:]), x.shape[0]
    return describe(chain.stages(), shape, batch, groups)


def _launches(chain: Chain, x: Any, groups: int, training: bool) -> list[Launch]:  # noqa: ANN401
    with recording() as launches, torch.set_grad_enabled(training):
        out = fused_chain(x, *_described(chain, x, groups), groups)
        if training:
            torch.autograd.backward(out, torch.empty_like(out))
    return launches


def compile_launches(launches: Iterable[Launch], target: str) -> list[Compiled]:
    """Compile launches, each distinct specialization once.

    Raises:
        InputError: no such target, or this process interprets kernels.
    """
    if target not in MACHINES:
        raise InputError(f"no target {target!r}; there are {', '.join(MACHINES)}")
    if triton.knobs.runtime.interpret:
        raise InputError("a process under TRITON_INTERPRET=1 cannot compile; unset it")
    hip = target.startswith("gfx")
    driver.set_active(
        _NoDevice(
            GPUTarget("hip", target, 64)
            if hip
            else GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
        )
    )
    compiled: dict[Any, tuple[Launch, Any, int]] = {}
    for launch in launches:
        kernel = launch.kernel.warmup(*launch.arguments, grid=launch.grid, **launch.parameters)
        first, _, count = compiled.get(kernel.hash, (launch, kernel, 0))
        compiled[kernel.hash] = (first, kernel, count + 1)
    return [_read(launch, kernel, target, n) for launch, kernel, n in compiled.values()]


def _read(launch: Launch, kernel: Any, target: str, launches: int) -> Compiled:  # noqa: ANN401
    variant = ", ".join(
        f"{key.lower()} {value}"
        for key, value in launch.parameters.items()
        if value not in (False, None) and key not in ("PRECISION",)
    )
    if target.startswith("gfx"):
        text = kernel.asm["amdgcn"]
        registers, stack = (
            int(re.findall(rf"\.{field}:\s*(\d+)", text)[0])
            for field in ("vgpr_count", "private_segment_fixed_size")
        )
        if not re.search(r"\bscratch_(load|store)", text):
            stack = 0  # words reserved for scalars that are kept in lanes of vectors after all
        matrix = {"mfma": text.count("v_mfma")}
        copies, f64 = text.count("buffer_load"), len(re.findall(r"v_\w+_f64", text))
    else:
        text = kernel.asm["ptx"]
        registers, stack = _resources(kernel.asm["cubin"])
        matrix = {
            "wgmma": text.count("wgmma.mma_async"),
            "tcgen05": text.count("tcgen05.mma"),
            "mma": text.count("mma.sync"),
        }
        copies, f64 = text.count("cp.async"), text.count(".f64")
    return Compiled(
        launch.name,
        variant,
        target,
        registers,
        stack,
        int(kernel.metadata.shared),
        {name: count for name, count in matrix.items() if count},
        copies,
        f64,
        launches,
    )


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes of a thread, by the cuobjdump that Triton brings."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run(
            [tool, "-res-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", told)
    if found is None:
        raise InputError(f"{tool}: told no resources: {told.strip() or 'nothing'}")
    return int(found[1]), int(found[2])


def main(arguments: list[str] | None = None) -> int:
    """The command; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.compiled", description=__doc__)
    parser.add_argument("--target", choices=[*MACHINES], default="sm_90")
    parser.add_argument("--experiment", choices=[*experiments.BASES], action="append")
    parser.add_argument("--dtype", choices=[*DTYPES], default="bf16")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    launches: list[Launch] = []
    try:
        with assuming(MACHINES[asked.target]):
            for name in asked.experiment or experiments.BASES:
                for training in (True, False):
                    parts = walk(name, DTYPES[asked.dtype], asked.batch_size, training=training)
                    launches += [launch for part in parts.values() for launch in part]
        compiled = compile_launches(launches, asked.target)
    except InputError as error:
        print(f"inspect: {error}", file=sys.stderr)
        return 2
    if asked.json:
        print(json.dumps([asdict(each) for each in compiled], indent=1))
        return 0
    print(f"{len(compiled)} kernels for {asked.target}, from {len(launches)} launches")
    print("registers  stack  shared  copies  f64  matrix     kernel")
    for c in sorted(compiled, key=lambda each: (each.kernel, -each.registers)):
        matrix = " ".join(f"{name} {count}" for name, count in c.matrix.items()) or "-"
        print(
            f"{c.registers:9d} {c.stack:6d} {c.shared:7d} {c.async_copies:7d} {c.f64:4d}  "
            f"{matrix:9s}  {c.kernel} x{c.launches}: {c.variant}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
