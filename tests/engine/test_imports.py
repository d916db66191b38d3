"""What importing the packages costs: modules that are slow to import are imported when needed."""

import os
import subprocess
import sys

import pytest
import torch

# A CPU build of PyTorch launches no kernel, so that Triton can wait.
SLOW = ["torch._dynamo", *([] if torch.version.cuda or torch.version.hip else ["triton"])]


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("fastinfogan.engine", ["scipy", "rich", "torch.utils.tensorboard"]),
        ("fastinfogan.nn", ["fastinfogan.experiments", "fastinfogan.data"]),
        ("fastinfogan.cli", ["rich", "torch"]),
    ],
)
def test_importing_leaves_out_what_is_slow(module: str, absent: list[str]) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    code = f"import sys, {module}; print([m for m in {SLOW + absent} if m in sys.modules])"
    printed = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment)
    assert printed.strip() == "[]"
