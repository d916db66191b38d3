"""The command line: one file per command, no arithmetic.

A command's options are a frozen dataclass that imports nothing heavy, so that --help is quick.
"""

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Annotated, Any

import tyro

from fastinfogan import __version__
from fastinfogan.cli.bench import SUITES, Bench, run_suite
from fastinfogan.cli.data import DataInfo, Prepare, Verify
from fastinfogan.cli.evaluate import Evaluate
from fastinfogan.cli.figure1 import Figure1
from fastinfogan.cli.info import Info
from fastinfogan.cli.sample import Sample
from fastinfogan.cli.train import Train
from fastinfogan.cli.traverse import Traverse
from fastinfogan.errors import InputError, TrainingError
from fastinfogan.files import set_compile_caches

Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Sample, tyro.conf.subcommand("sample")]
    | Annotated[Traverse, tyro.conf.subcommand("traverse")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Figure1, tyro.conf.subcommand("figure1")]
    | Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[
        Annotated[DataInfo, tyro.conf.subcommand("info")]
        | Annotated[Verify, tyro.conf.subcommand("verify")]
        | Annotated[Prepare, tyro.conf.subcommand("prepare")],
        tyro.conf.subcommand("data", description="Look at a set of images, check it, prepare it."),
    ]
)


_FLAGS = {"low": "from", "high": "to"}  # what tyro calls options whose name is a keyword


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `fastinfogan`.

    Args:
        arguments: what follows the program's name; None for the process's own.

    Returns:
        The exit code: 0, 2 for bad input, 1 for a full disk, training that diverged and the like,
        130 or 143 if stopped.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given == ["--version"]:
        print(f"fastinfogan {__version__}")
        return 0
    if len(given) > 1 and given[0] == "bench" and given[1] in SUITES:
        return _exit_code(lambda: run_suite(given[1], given[2:]))
    return run(
        Command,
        "fastinfogan",
        "Train InfoGAN, and look at what its codes have learned.",
        given,
    )


def run(command: Any, prog: str, description: str | None, arguments: Sequence[str]) -> int:  # noqa: ANN401 - a dataclass or a union of some
    """Parse a command's arguments and run it; the exit code, as of `main`."""

    def parse_and_run() -> int:
        parsed = tyro.cli(
            command,
            prog=prog,
            description=description,
            args=arguments,
            config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes),
        )
        try:
            code: int = parsed.run()
        except (InputError, TrainingError) as error:
            error.args = (_with_flags(str(error), {f.name for f in fields(parsed)}),)
            raise
        return code

    set_compile_caches()
    return _exit_code(parse_and_run)


def _with_flags(message: str, options: set[str]) -> str:
    """Name the flags of a command where a library names arguments: `batch_size`, `cache='file'`."""

    def flag(found: re.Match[str]) -> str:
        name, value = found.groups()
        if name not in options:
            return found[0]
        return f"--{_FLAGS.get(name, name).replace('_', '-')}" + (f" {value}" if value else "")

    return re.sub(r"`(\w+)(?:='?([^`']*)'?)?`", flag, message)


def _exit_code(call: Callable[[], int]) -> int:
    """Call; an error is one line on stderr and a code."""
    try:
        return call()
    except InputError as error:
        return _fail(error, 2)
    except MemoryError:
        return _fail("not enough memory", 2)
    except (OSError, TrainingError) as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _fail(what: object, code: int) -> int:
    rank = os.environ.get("RANK") if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None
    program = "fastinfogan" if rank is None else f"fastinfogan, rank {rank}"
    print(f"{program}: {' '.join(str(what).splitlines())}", file=sys.stderr)
    return code
