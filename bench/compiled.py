"""Compile every kernel that the experiments launch, ahead of time, with no GPU.

    python -m bench.compiled --target sm_90 [--experiment mnist] [--json]

An iteration of each experiment, and its networks as modules, are recorded on tensors without
storage; each launch is compiled with the specialization it would have, for sm_80, sm_90, sm_100 or
gfx942, and its registers, stack, shared memory and instructions are read from the binary.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, get_args

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from bench.counting.iteration import meta_iteration
from fastinfogan import experiments
from fastinfogan.engine.config import PRECISIONS, ComputedIn
from fastinfogan.engine.iteration import Iteration
from fastinfogan.engine.network_step import with_working_copies
from fastinfogan.errors import InputError
from fastinfogan.experiments import Experiment
from fastinfogan.networks import InfoGAN
from fastinfogan.nn import Chain
from fastinfogan_kernels.conv_block.autograd import fused_chain
from fastinfogan_kernels.conv_block.layers import Images
from fastinfogan_kernels.inputs.draw import draw_codes
from fastinfogan_kernels.inputs.real_images import Augmentation, real_images
from fastinfogan_kernels.philox import Stream
from fastinfogan_kernels.runtime.launch import Launch, recording
from fastinfogan_kernels.runtime.machine import MACHINES, Machine, assuming

META = torch.device("meta")
AROUND = "around"


@dataclass(frozen=True)
class Compiled:
    """What a launch became.

    Attributes:
        kernel: its name.
        variant: the constexpr arguments that distinguish it from its siblings.
        target: what it was compiled for.
        registers: of a thread.
        stack: bytes of a thread, spilled or indexed.
        shared: bytes of shared memory of a program.
        matrix: matrix instructions by name (wgmma, tcgen05, mma, mfma), those that occur.
        async_copies: cp.async and TMA copies.
        f64: double-precision instructions.
        launches: how often it is launched by what was recorded.
        assembly: PTX or AMDGCN.
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
    assembly: str = ""


def record(e: Experiment, precision: ComputedIn = "bf16") -> dict[str, list[Launch]]:
    """Record the launches of one iteration, without running them.

    Args:
        e: with its batch size.
        precision: of the iteration.

    Returns:
        By step and network, "D step trunk" for one; the rest, real images, codes, metrics and Adam,
        by "around".
    """
    found: dict[str, list[Launch]] = {}
    with recording() as launches, PRECISIONS[precision].arithmetic(), torch.no_grad():
        iteration = meta_iteration(e, precision)
        iteration.program()  # the first one makes tables
        launches.clear()
        _attribute(iteration, launches, found)
        iteration.program()
    found[AROUND] = launches
    return found


def _attribute(
    iteration: Iteration, launches: list[Launch], found: dict[str, list[Launch]]
) -> None:
    """Make each network's methods move what they launch from `launches` to `found`."""
    for step, networks in zip("DG", iteration.steps, strict=True):
        for name, network in vars(networks).items():
            of_network = found.setdefault(f"{step} step {name}", [])
            for method in dir(type(network)):
                call = getattr(network, method)
                if not method.startswith("_") and callable(call):
                    setattr(network, method, partial(_moving, call, launches, of_network))


def _moving(
    call: Callable[..., Any], launches: list[Launch], to: list[Launch], *args: Any, **kwargs: Any
) -> Any:
    before = len(launches)
    result = call(*args, **kwargs)
    to += launches[before:]
    del launches[before:]
    return result


def record_inputs(e: Experiment, precision: ComputedIn = "bf16") -> list[Launch]:
    """Record real images and codes drawn in every way: augmented, in order, by the host's step."""
    dtype, batch = PRECISIONS[precision].computed, e.batch_size
    with recording() as launches, META:
        images = torch.empty((2 * batch, e.height, e.width, e.channels), dtype=torch.uint8)
        out = torch.empty((batch, *images.shape[1:]), dtype=dtype)
        for step in (0, torch.zeros((), dtype=torch.int64)):
            for augmentation, in_order in product(get_args(Augmentation), (False, True)):
                real_images(images, 0, step, out, augmentation=augmentation, in_order=in_order)
            draw_codes(
                e.latents, 0, step, Stream.D_STEP, batch, streams=2, device=META, dtype=dtype
            )
    return launches


def record_modules(
    e: Experiment, precision: ComputedIn = "bf16", *, training: bool = False
) -> list[Launch]:
    """Record the networks as modules: evaluation's forward, or forward and backward by autograd."""
    dtype, batch = PRECISIONS[precision].computed, e.batch_size
    with recording() as launches, torch.set_grad_enabled(training), META:
        networks, _ = with_working_copies(InfoGAN(e).train(training), dtype)
        image = torch.empty((batch, e.channels, e.height, e.width), dtype=dtype)
        image = image.to(memory_format=torch.channels_last).requires_grad_(training)
        features = _run(networks.trunk, image)
        pixels = torch.empty((batch, *image.shape[2:], e.channels), dtype=torch.uint8)
        index = torch.empty(batch, dtype=torch.int64)
        of_pixels = _run(networks.trunk, Images(pixels, index, 1 / 255, 0.0, dtype), image.shape)
        codes = torch.empty((batch, e.latents.input_width), dtype=dtype)
        inputs = ((networks.d_head, features), (networks.q_head, features))
        results = [_run(*each) for each in (*inputs, (networks.generator, codes))] + [of_pixels]
        if training:
            torch.autograd.backward(results, [torch.empty_like(each) for each in results])
    return launches


def _run(chain: Chain, x: Any, shape: Sequence[int] | None = None) -> torch.Tensor:
    """Run a chain's kernels; the chain itself asks for autocast, which "meta" tensors lack."""
    batch, *each = shape or x.shape
    calls = chain.calls(tuple(each), batch)
    return fused_chain(x, [c.layer for c in calls], [c.tensors for c in calls], 1)


def record_all(e: Experiment, precision: ComputedIn = "bf16") -> list[Launch]:
    """Record all that an experiment launches, in training and in evaluation."""
    found = [launch for part in record(e, precision).values() for launch in part]
    found += record_inputs(e, precision)
    for training in (True, False):
        found += record_modules(e, precision, training=training)
    return found


class _NoDevice:
    """A stand-in for Triton's driver, with a target to compile for and no device."""

    def __init__(self, target: GPUTarget) -> None:
        self.get_current_target = lambda: target
        self.get_current_device = lambda: 0
        self.get_current_stream = lambda device: 0
        self.get_active_torch_device = lambda: META
        self.map_python_to_cpp_type = lambda kind: kind
        self.is_active = lambda: True


def _require_compiler(target: str) -> None:
    if target not in MACHINES:
        raise InputError(f"no target {target!r}; there are {', '.join(MACHINES)}")
    if triton.knobs.runtime.interpret:
        raise InputError("a process under TRITON_INTERPRET=1 cannot compile; unset it")


def compile_launches(launches: Iterable[Launch], target: str) -> list[Compiled]:
    """Compile launches, each distinct specialization once.

    Raises:
        InputError: no such target, or this process interprets kernels.
    """
    _require_compiler(target)
    hip = target.startswith("gfx")
    gpu = ("hip", target, 64) if hip else ("cuda", int(target.removeprefix("sm_")), 32)
    driver.set_active(_NoDevice(GPUTarget(*gpu)))
    compiled: dict[Any, tuple[Launch, Any, int]] = {}
    for launch in launches:
        kernel = launch.kernel.warmup(*launch.arguments, grid=launch.grid, **launch.parameters)
        first, _, count = compiled.get(kernel.hash, (launch, kernel, 0))
        compiled[kernel.hash] = (first, kernel, count + 1)
    return [_read(launch, kernel, target, n) for launch, kernel, n in compiled.values()]


def _read(launch: Launch, kernel: Any, target: str, launches: int) -> Compiled:
    variant = ", ".join(
        f"{key.lower()} {value}"
        for key, value in launch.parameters.items()
        if value not in (False, None) and key not in ("PRECISION", "enable_fp_fusion")
    )
    if target.startswith("gfx"):
        text = kernel.asm["amdgcn"]
        registers, stack = (
            int(re.findall(rf"\.{field}:\s*(\d+)", text)[0])
            for field in ("vgpr_count", "private_segment_fixed_size")
        )
        if not re.search(r"\bscratch_(load|store)", text):
            stack = 0  # words reserved for scalars that end in lanes of vectors after all
        matrix = {"mfma": text.count("v_mfma")}
        copies, f64 = text.count("buffer_load"), len(re.findall(r"v_\w+_f64", text))
    else:
        text = kernel.asm["ptx"]
        registers, stack = _resources(kernel.asm["cubin"])
        instructions = {"wgmma": "wgmma.mma_async", "tcgen05": "tcgen05.mma", "mma": "mma.sync"}
        matrix = {name: text.count(each) for name, each in instructions.items()}
        copies, f64 = text.count("cp.async"), text.count(".f64")
    used = {name: count for name, count in matrix.items() if count}
    shared = int(kernel.metadata.shared)
    return Compiled(
        launch.name, variant, target, registers, stack, shared, used, copies, f64, launches, text
    )


def _resources(cubin: bytes) -> tuple[int, int]:
    """Read registers and stack bytes of a thread, by the cuobjdump that Triton brings."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        printed = subprocess.run(
            [tool, "-res-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", printed)
    if found is None:
        raise InputError(f"{tool}: no resources in its output: {printed.strip() or 'nothing'}")
    return int(found[1]), int(found[2])


@dataclass(frozen=True)
class Share:
    """One worker's part of what is compiled in parallel, and where it writes what it found.

    Attributes:
        target: see `compile_launches`.
        machine: by which tiles are chosen.
        part: of this worker.
        parts: of all.
        deadline: by `time.time`; nothing is begun after it, but the first launch.
        file: a JSON line for each kernel: `Compiled` without its assembly, "wave", and "refused"
            instead where the compiler failed.
    """

    target: str
    machine: Machine
    part: int
    parts: int
    deadline: float
    file: Path


Waves = Callable[[], Iterable[tuple[str, Sequence[Launch]]]]


def compile_share(waves: Waves, share: Share) -> None:
    """Compile every `parts`-th distinct launch of each wave; the body of a worker process."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    seen: set[Any] = set()
    with assuming(share.machine), share.file.open("a", buffering=1) as out:
        for wave, launches in waves():
            new = {signature(launch): launch for launch in launches}
            new = {key: launch for key, launch in new.items() if key not in seen}
            seen |= new.keys()
            for launch in list(new.values())[share.part :: share.parts]:
                if time.time() > share.deadline and out.tell():
                    return
                found: dict[str, Any] = {"wave": wave, "kernel": launch.name}
                try:
                    found |= asdict(compile_launches([launch], share.target)[0]) | {"assembly": ""}
                except Exception as error:  # one that the compiler refuses costs itself alone
                    found["refused"] = f"{type(error).__name__}: {error}"[:300]
                out.write(json.dumps(found) + "\n")


def signature(launch: Launch) -> tuple[Any, ...]:
    """Identify the specialization of a launch, about as Triton does, without compiling it."""
    found: list[Any] = []
    for argument in launch.arguments:
        if isinstance(argument, torch.Tensor):
            found.append((argument.dtype, argument.data_ptr() % 16 == 0))
        elif isinstance(argument, int):
            found.append((argument == 1, argument % 16 == 0, abs(argument) >> 31 != 0))
        else:
            found.append(type(argument))
    return launch.name, tuple(found), tuple(sorted(map(str, launch.parameters.items())))


def start_workers(waves: Waves, shares: Sequence[Share]) -> list[Any]:
    """Start `compile_share` in a process for each share, which ends with this one."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=compile_share, args=(waves, s), daemon=True) for s in shares]
    for worker in workers:
        worker.start()
    return workers


def read_lines(shares: Iterable[Share]) -> list[dict[str, Any]]:
    """Read what workers have written so far; a line that was cut off is left out."""
    found = []
    for share in shares:
        for line in share.file.read_text().splitlines() if share.file.exists() else ():
            with suppress(ValueError):
                found.append(json.loads(line))
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compiled", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--target", choices=[*MACHINES], default="sm_90")
    parser.add_argument("--experiment", choices=[*experiments.EXPERIMENTS], action="append")
    parser.add_argument("--precision", choices=["bf16", "fp16", "fp32"], default="bf16")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--launches", metavar="MODULE:FUNCTION", help="instead of an experiment's: "
                        "those that a function records and returns")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print all columns as JSON")
    parser.add_argument("--assembly", action="store_true", help="with --json also PTX or AMDGCN")
    args = parser.parse_args(arguments)
    launches: list[Launch] = []
    try:
        _require_compiler(args.target)
        with assuming(MACHINES[args.target]):
            if args.launches:
                module, _, function = args.launches.partition(":")
                launches += getattr(importlib.import_module(module), function)()
            for name in () if args.launches else args.experiment or experiments.EXPERIMENTS:
                e = replace(experiments.get(name), batch_size=args.batch_size)
                launches += record_all(e, args.precision)
            compiled = compile_launches(launches, args.target)
    except InputError as error:
        print(f"compiled: {error}", file=sys.stderr)
        return 2
    if args.json:
        rows = [asdict(each) for each in compiled]
        for row in () if args.assembly else rows:
            del row["assembly"]
        print(json.dumps(rows, indent=1))
        return 0
    print(f"{len(compiled)} kernels for {args.target}, from {len(launches)} launches")
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
