"""How many files of the project a reader passes from the command line to the first convolution."""

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

import fastinfogan
import fastinfogan_kernels
from fastinfogan.cli import main

ROOTS = [str(Path(package.__file__).parent) for package in (fastinfogan, fastinfogan_kernels)]
AT_MOST = 30


class FirstConvolution(BaseException):
    """Ends the run there."""


class StopAtConvolution(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        if func.overloadpacket.__name__ == "convolution":
            raise FirstConvolution
        return func(*args, **(kwargs or {}))


def test_files_from_the_command_to_the_first_convolution() -> None:
    files: set[str] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(tuple(ROOTS)):
            return
        outer: FrameType | None = frame
        while outer is not None and outer.f_code is not test_code:
            if outer.f_code.co_name == "<module>":  # a module is being imported
                return
            outer = outer.f_back
        files.add(code.co_filename)

    test_code = sys._getframe().f_code
    arguments = ["train", "mnist", "--iterations", "1", "--batch-size", "4", "--precision", "fp32"]
    sys.setprofile(note)
    try:
        with StopAtConvolution(), pytest.raises(FirstConvolution):
            main([*arguments, "--out", "run"])
    finally:
        sys.setprofile(None)
    assert 10 < len(files) <= AT_MOST, "\n".join(sorted(files))
