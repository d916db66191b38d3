"""The command line: one file per command, no arithmetic.

A command's options are a frozen dataclass that imports nothing heavy, so that --help is quick.
"""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from fastinfogan.cli.bench_counts import Counts
from fastinfogan.cli.bench_parity import Parity
from fastinfogan.cli.data import DataInfo, Prepare, Verify
from fastinfogan.cli.evaluate import Evaluate
from fastinfogan.cli.figure1 import Figure1
from fastinfogan.cli.info import Info
from fastinfogan.cli.sample import Sample
from fastinfogan.cli.train import Train
from fastinfogan.cli.traverse import Traverse
from fastinfogan.errors import InputError, TrainingError
from fastinfogan.paths import keep_compiled

Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Sample, tyro.conf.subcommand("sample")]
    | Annotated[Traverse, tyro.conf.subcommand("traverse")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Figure1, tyro.conf.subcommand("figure1")]
    | Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[
        Annotated[Counts, tyro.conf.subcommand("counts")]
        | Annotated[Parity, tyro.conf.subcommand("parity")],
        tyro.conf.subcommand("bench", description="What an iteration asks, and what it computes."),
    ]
    | Annotated[
        Annotated[DataInfo, tyro.conf.subcommand("info")]
        | Annotated[Verify, tyro.conf.subcommand("verify")]
        | Annotated[Prepare, tyro.conf.subcommand("prepare")],
        tyro.conf.subcommand("data", description="Look at a set of images, check it, prepare it."),
    ]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: what follows the program's name; None for the process's own.

    Returns:
        The exit code: 0, 2 for bad input, 1 for a full disk, training that diverged and the like,
        130 or 143 if stopped.
    """
    keep_compiled()
    try:
        command = tyro.cli(
            Command,
            prog="fastinfogan",
            description="Train InfoGAN, and look at what its codes have come to mean.",
            args=arguments,
            config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes),
        )
        return command.run()
    except InputError as error:
        return _tell(error, 2)
    except MemoryError:
        return _tell("not enough memory for what was asked for", 2)
    except (OSError, TrainingError) as error:
        return _tell(error, 1)
    except KeyboardInterrupt:
        return _tell("interrupted", 130)


def _tell(what: object, code: int) -> int:
    rank = os.environ.get("RANK") if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None
    who = "fastinfogan" if rank is None else f"fastinfogan, rank {rank}"
    print(f"{who}: {' '.join(str(what).splitlines())}", file=sys.stderr)
    return code
