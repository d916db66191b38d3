"""What importing the packages costs: modules that are slow to import are imported when needed."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("fastinfogan.engine", ["torch._dynamo", "torch.utils.tensorboard", "scipy", "rich"]),
        ("fastinfogan.nn", ["torch._dynamo", "fastinfogan.experiments", "fastinfogan.data"]),
        ("fastinfogan.cli", ["torch", "rich"]),
    ],
)
def test_importing_leaves_out_what_is_slow(module: str, absent: list[str]) -> None:
    code = f"import sys, {module}; print([m for m in {absent} if m in sys.modules])"
    printed = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert printed.strip() == "[]"
