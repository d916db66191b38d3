"""Work of several processes, joined by gloo."""

import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing import ProcessContext, spawn


def run_ranks(work: Callable[..., None], world_size: int, folder: Path, *arguments: object) -> None:
    """Call `work(rank, folder, *arguments)` in `world_size` processes of one group.

    Raises:
        AssertionError: a process failed. The message is of the first that did: the others then
            lose their connections to it, and which process ends first is left to chance.
    """
    started: ProcessContext = spawn(
        _run, (work, world_size, folder, arguments), world_size, join=False
    )
    try:
        while not started.join():
            pass
    except Exception as error:
        codes = [process.exitcode for process in started.processes]
        first = _first_failure(folder)
        reason = first.read_text() if first.exists() else str(error)
        raise AssertionError(f"exit codes {codes}; the first to fail: {reason}") from error


def _first_failure(folder: Path) -> Path:
    return folder / "first_failure"


def _run(
    rank: int, work: Callable[..., None], world_size: int, folder: Path, arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=world_size
    )
    try:
        work(rank, folder, *arguments)
        dist.barrier()  # none closes its connections while another still uses them
    except BaseException:
        # Before this process ends, and its connections with it.
        with suppress(FileExistsError), _first_failure(folder).open("x") as file:
            file.write(f"rank {rank}\n{traceback.format_exc()}")
        raise
    dist.destroy_process_group()
