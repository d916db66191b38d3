"""Compiling kernels before they are needed, by as many processes as there are cores.

A kernel takes about a second to compile, and the experiments launch some hundreds of them in three
precisions: one by one that is longer than a GPU is at hand. Workers walk the same programs on
tensors without storage, compile their part of the launches for the GPU's target, and so fill the
cache from which the stages load. They use no GPU.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.compiled import compile_launches
from bench.gpu_report import chains
from bench.gpu_report.stage import first_line
from bench.gpu_report.workload import FIVE, experiment, make_iteration
from fastinfogan.engine.precision import PRECISIONS, ComputedIn
from fastinfogan.networks import InfoGAN
from fastinfogan.nn.run import describe
from fastinfogan_kernels.conv_block.autograd import fused_chain
from fastinfogan_kernels.runtime.launch import Launch, recording
from fastinfogan_kernels.runtime.machine import MACHINES, Machine, assuming, machine_of

META = torch.device("meta")
WAVES: tuple[tuple[str, ComputedIn], ...] = (
    ("iterations", "bf16"),
    ("chains", "bf16"),
    ("evaluation", "fp32"),
    ("iterations at other batches", "bf16"),
    ("iterations", "fp16"),
    ("chains", "fp16"),
    ("iterations", "fp32"),
    ("chains", "fp32"),
)
_OTHER_BATCHES = (32, 512, 4096)
_EVALUATED = (512, 392, 100)
"""Rows at once when MNIST's run is judged: of 5,000 images, and of a picture."""
_DRY_KERNELS = 6


def target_of(device: torch.device) -> tuple[str, Machine]:
    """What kernels are compiled for, and the machine by which tiles are chosen; sm_90 for a CPU."""
    if device.type != "cuda":
        return "sm_90", MACHINES["sm_90"]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}", machine_of(device)


def walked(what: str, precision: ComputedIn, *, dry: bool = False) -> Iterator[Launch]:
    """The launches of the experiments' iterations, or of the chains that are compared.

    Args:
        what: one of `WAVES`.
        precision: of them.
        dry: as small as can be.
    """
    if what == "evaluation":
        yield from _evaluated(dry=dry)
        return
    names = FIVE[:1] if dry else FIVE
    dtype = PRECISIONS[precision].computed
    batches = _OTHER_BATCHES if "other" in what else (None,) if what == "iterations" else ()
    for name in names:
        for batch in batches:
            e = experiment(name, dry=dry, batch=batch)
            with recording() as launches, PRECISIONS[precision].arithmetic(), torch.no_grad():
                iteration = make_iteration(e, precision, META)
                iteration.program()
                iteration._run(0)  # call by call: the host knows the number
            yield from launches
        e = experiment(name, dry=dry)
        if what == "chains":
            yield from _of_chains(chains.chains_of(e), precision, dtype)
    if what == "chains":
        yield from _of_chains(chains.odd_chains(dry=dry), precision, dtype)


def _of_chains(
    cases: Iterable[chains.ChainCase], precision: ComputedIn, dtype: torch.dtype
) -> Iterator[Launch]:
    for case in cases:
        with recording() as launches, PRECISIONS[precision].arithmetic():
            chains.ours(case, META, dtype)
        yield from launches


def _evaluated(*, dry: bool) -> Iterator[Launch]:
    """The networks of MNIST as a run is judged by: fp32, running statistics."""
    e = experiment("mnist", dry=dry)
    with META:
        n = InfoGAN(e).eval()
    for rows in _EVALUATED:
        images = torch.empty((rows, e.height, e.width, e.channels), device=META)
        with recording() as launches, PRECISIONS["fp32"].arithmetic(), torch.no_grad():
            x = images.permute(0, 3, 1, 2)
            for chain in (n.trunk, n.q_head):
                x = fused_chain(x, *describe(chain.stages(), tuple(x.shape[1:]), rows, 1), 1)
            width = e.latents.input_width
            codes = torch.empty((rows, width), device=META)
            fused_chain(codes, *describe(n.generator.stages(), (width,), rows, 1), 1)
        yield from launches


def signature(launch: Launch) -> tuple[Any, ...]:
    """What tells a launch's program from another's, roughly: by it work is shared out."""
    found: list[Any] = []
    for argument in launch.arguments:
        if isinstance(argument, torch.Tensor):
            found.append((argument.dtype, argument.data_ptr() % 16 == 0))
        elif isinstance(argument, int):
            found.append((argument == 1, argument % 16 == 0, abs(argument) >> 31 != 0))
        else:
            found.append(type(argument))
    return launch.name, tuple(found), tuple(sorted(map(str, launch.parameters.items())))


def distinct(launches: Iterable[Launch]) -> list[Launch]:
    """One launch of each program, in their order."""
    return list({signature(launch): launch for launch in launches}.values())


def compile_part(
    launches: Sequence[Launch], part: int, of: int, target: str, deadline: float
) -> list[dict[str, Any]]:
    """Compile every so manieth program until a time, one at least; what each became, or why not."""
    found: list[dict[str, Any]] = []
    for launch in launches[part::of]:
        if found and time.monotonic() > deadline:
            break
        try:
            found += [asdict(each) for each in compile_launches([launch], target)]
        except Exception as error:  # one that is refused costs itself alone
            found.append({"kernel": launch.name, "refused": first_line(error)})
    return found


def start(
    arguments: Sequence[str], workers: int, files: Path, *, module: str = __name__
) -> list[subprocess.Popen[bytes]]:
    """Start workers, in the group of this process, so that they end with it.

    Args:
        arguments: of all of them.
        workers: how many.
        files: each writes what it found to this, with its number behind.
        module: that they run; it takes --part, --of and --file.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("TRITON_INTERPRET", None)
    return [
        subprocess.Popen(
            [
                sys.executable, "-m", module, *arguments, "--part", str(part),
                "--of", str(workers), "--file", f"{files}-{part}",
            ],
            stdin=subprocess.DEVNULL,
            env=environment,
        )
        for part in range(workers)
    ]  # fmt: skip


def machine_arguments(target: str, machine: Machine) -> list[str]:
    """A machine, as workers are told it."""
    return ["--target", target, "--machine", json.dumps(asdict(machine))]


def finished(workers: Iterable[subprocess.Popen[bytes]], seconds: float) -> bool:
    """Wait for workers; those that take longer are stopped."""
    deadline = time.monotonic() + seconds
    in_time = True
    for worker in workers:
        try:
            worker.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
            in_time = False
    return in_time


def found_by(files: Path, workers: int) -> list[dict[str, Any]]:
    """What the workers wrote."""
    found: list[dict[str, Any]] = []
    for part in range(workers):
        with suppress(OSError, ValueError):
            found += json.loads(Path(f"{files}-{part}").read_text())
    return found


def main() -> None:
    """A worker: all waves, one after the other."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", required=True)
    parser.add_argument("--machine", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--part", type=int, required=True)
    parser.add_argument("--of", type=int, required=True)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--dry-run", action="store_true")
    asked = parser.parse_args()
    deadline = time.monotonic() + asked.seconds
    torch.set_num_threads(1)
    seen: set[tuple[Any, ...]] = set()
    found: list[dict[str, Any]] = []
    with assuming(Machine(**json.loads(asked.machine))):
        for what, precision in WAVES[:1] if asked.dry_run else WAVES:
            every = distinct(walked(what, precision, dry=asked.dry_run))
            new = [launch for launch in every if signature(launch) not in seen]
            seen |= {signature(launch) for launch in new}
            if asked.dry_run:
                new = new[:_DRY_KERNELS]
            part = compile_part(new, asked.part, asked.of, asked.target, deadline)
            found += [{**each, "wave": f"{what}, {precision}"} for each in part]
            # Written after each wave: a worker that is stopped has told what it did.
            asked.file.write_text(json.dumps(found))
            if time.monotonic() > deadline:
                break


if __name__ == "__main__":
    main()
