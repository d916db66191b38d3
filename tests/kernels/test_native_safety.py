"""The C++ kernels given wrong arguments; the C++ test under the sanitizers; what is linked."""

import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastinfogan_kernels.runtime.launch import native_available

if not native_available():
    pytest.skip("_native not compiled", allow_module_level=True)

from fastinfogan_kernels import _native

TREE = Path(__file__).parents[2]
F32, I32, I64 = torch.float32, torch.int32, torch.int64


def zeros(*shape: int, dtype: torch.dtype = F32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


# A call of each function that is right, and then wrong in one argument.
RIGHT: dict[str, Callable[[], dict[str, Any]]] = {
    "draw_codes": lambda: {
        "seed": 1, "step": 2, "stream": 0, "first_row": 0, "noise_size": 3, "normal": False,
        "class_counts": [4], "generator_input": zeros(5, 9), "classes": zeros(5, 1, dtype=I64),
        "continuous": zeros(5, 2),
    },
    "q_head_log_likelihood": lambda: {
        "output": zeros(5, 6), "classes": zeros(5, 1, dtype=I64), "continuous": zeros(5, 1),
        "table": torch.tensor([[0, 0, 4, 0], [1, 4, 5, 0]], dtype=I32),
        "bounds": torch.tensor([[-math.inf, math.inf]] * 2), "scales": torch.ones(2), "rows": None,
        "values": zeros(2), "gradient": zeros(5, 6), "counters": zeros(2, dtype=I32),
    },
    "d_head_objective": lambda: {
        "features": zeros(6, 3), "weight": zeros(3), "bias": None,
        "targets": torch.tensor([1, 0], dtype=I32), "scale": 1.0, "logits": zeros(6),
        "losses": zeros(2), "gradient": zeros(6), "counters": zeros(1, dtype=I32),
    },
    "adam": lambda: {
        "parameters": [zeros(4, 3)], "gradients": [zeros(4, 3)], "exp_avgs": [zeros(4, 3)],
        "exp_avg_sqs": [zeros(4, 3)], "working_copies": [None],
        "lr": 1e-3, "beta1": 0.5, "beta2": 0.9, "eps": 1e-8, "step": 1.0, "grad_scale": 1.0,
    },
    "norm_statistics": lambda: {
        "y": zeros(4, 9, 3), "groups": 2, "mean": zeros(2, 3), "rstd": zeros(2, 3),
        "variance": zeros(2, 3), "eps": 1e-5,
    },
    "norm_apply": lambda: {
        "y": zeros(4, 9, 3), "scale": zeros(2, 3), "shift": zeros(2, 3), "activation": 1,
        "slope": 0.1, "out": zeros(4, 9, 3),
    },
    "norm_gradient": lambda: {
        "dout": zeros(4, 9, 3), "y": zeros(4, 9, 3), "scale": zeros(2, 3), "shift": zeros(2, 3),
        "mean": zeros(2, 3), "rstd": zeros(2, 3), "gamma": zeros(3), "activation": 1, "slope": 0.1,
        "dy": None, "dgamma": zeros(3), "dbeta": zeros(3),
    },
    "activation_gradient": lambda: {
        "dout": zeros(4, 9, 3), "out_or_z": zeros(4, 9, 3), "from_output": True, "activation": 1,
        "slope": 0.1, "dz": zeros(4, 9, 3), "dbias": None,
    },
}  # fmt: skip

WRONG: list[tuple[str, str, object, str]] = [
    ("draw_codes", "seed", -1, r"seed must be 0 or more and below 2\^64"),
    ("draw_codes", "seed", 1.5, "seed must be an int, not float"),
    ("draw_codes", "step", 2**32, "step must be from 0 to 4294967295"),
    ("draw_codes", "noise_size", -1, "noise_size must be from 0"),
    ("draw_codes", "normal", 1, "normal must be True or False, not int"),
    ("draw_codes", "class_counts", 4, "class_counts must be a list, not int"),
    ("draw_codes", "class_counts", [0], "class_counts must be from 1"),
    ("draw_codes", "class_counts", [5], r"generator_input must be of shape \(5, 10\), not"),
    ("draw_codes", "classes", zeros(5, 1), "classes must be int64, not float32"),
    ("draw_codes", "continuous", zeros(4, 2), r"generator_input must be of shape \(4, 9\)"),
    ("q_head_log_likelihood", "output", zeros(5),
     r"output must be of shape \(\*, \*\), not \(5,\)"),
    ("q_head_log_likelihood", "output", zeros(0, 6), "output must have one row or more"),
    ("q_head_log_likelihood", "output", zeros(5, 6, dtype=torch.float64),
     "output must be float32, bfloat16 or float16, not float64"),
    ("q_head_log_likelihood", "output", zeros(6, 5).T, "output must be contiguous"),
    ("q_head_log_likelihood", "output", zeros(5, 6, dtype=torch.half),
     "gradient must be float16, not float32"),
    ("q_head_log_likelihood", "classes", zeros(4, 1, dtype=I64), "classes must be of shape"),
    ("q_head_log_likelihood", "table", torch.tensor([[0, 0, 7, 0]] * 2, dtype=I32),
     "table's row 0 does not fit"),
    ("q_head_log_likelihood", "table", torch.tensor([[0, 0, 4, 0], [1, 4, 6, 0]], dtype=I32),
     "table's row 1 does not fit"),
    ("q_head_log_likelihood", "table", torch.tensor([[0, 0, 4, 1]] * 2, dtype=I32), "row 0"),
    ("q_head_log_likelihood", "table", torch.tensor([[3, 0, 4, 0]] * 2, dtype=I32), "row 0"),
    ("q_head_log_likelihood", "table", torch.tensor([[0, -1, 4, 0]] * 2, dtype=I32), "row 0"),
    ("q_head_log_likelihood", "table", torch.full((2, 4), 2**31 - 1, dtype=I32), "row 0"),
    ("q_head_log_likelihood", "counters", zeros(1, dtype=I32), "counters must be of shape"),
    ("d_head_objective", "targets", torch.ones(5, dtype=I32),
     "targets must have a length that divides the 6 rows"),
    ("d_head_objective", "targets", zeros(0, dtype=I32), "targets must have a length"),
    ("d_head_objective", "targets", torch.tensor([2, 0], dtype=I32), "targets must be 0 or 1"),
    ("d_head_objective", "scale", "1", "scale must be a number, not str"),
    ("d_head_objective", "features", None, "features must be a CPU tensor, not NoneType"),
    ("d_head_objective", "losses", torch.nn.Parameter(zeros(2)), "losses is written into"),
    ("d_head_objective", "gradient", zeros(6).requires_grad_(),
     "gradient is written into and must not require grad: detach it"),
    ("d_head_objective", "features", torch.zeros(6, 3, device="meta"), "features "),
    ("d_head_objective", "weight", zeros(4), r"weight must be of shape \(3,\), not \(4,\)"),
    ("d_head_objective", "weight", zeros(3, dtype=torch.half),
     "weight must be float32, not float16"),
    ("d_head_objective", "bias", zeros(2), "bias must be of shape"),
    ("adam", "parameters", zeros(4, 3), "parameters must be a list, not Tensor"),
    ("adam", "gradients", [], "must be of equal length"),
    ("adam", "parameters", [zeros(4, 3, dtype=torch.half)], r"parameters\[0\] must be float32"),
    ("adam", "gradients", [zeros(3, 4)], r"gradients\[0\] must have the shape and strides of"),
    ("adam", "exp_avgs", [zeros(3, 4).T], r"exp_avgs\[0\] must have the shape and strides of"),
    ("adam", "parameters", [zeros(4, 6)[:, :3]], r"parameters\[0\] must fill its memory"),
    ("adam", "parameters", [zeros(1, 3).expand(4, 3)], r"parameters\[0\] must fill its memory"),
    ("adam", "working_copies", [zeros(4, 3)],
     r"working_copies\[0\] must be bfloat16 or float16, not float32"),
    ("adam", "step", 0.0, "step must be 1 or more"),
    ("adam", "step", math.nan, "step must be 1 or more"),
    ("adam", "beta2", 1.0, "beta2 must be from 0 to less than 1"),
    ("adam", "grad_scale", 0.0, "grad_scale must not be 0"),
    ("norm_statistics", "y", zeros(4, 27), r"y must be of shape \(\*, \*, \*\)"),
    ("norm_statistics", "y", zeros(4, 0, 3), "y must not be empty"),
    ("norm_statistics", "groups", 3, "y's 4 images must be a multiple of the 3 statistics groups"),
    ("norm_statistics", "groups", 0, "groups must be from 1"),
    ("norm_statistics", "mean", zeros(1, 3), "mean must be of shape"),
    ("norm_apply", "shift", None, "scale and shift must both be given or None"),
    ("norm_apply", "scale", zeros(0, 3), "scale must have one statistics group or more"),
    ("norm_apply", "activation", 4, "activation must be from 0 to 3"),
    ("norm_apply", "out", zeros(4, 9, 3, dtype=torch.half), "out must be float32, not float16"),
    ("norm_gradient", "gamma", zeros(2), "gamma must be of shape"),
    ("norm_gradient", "dout", zeros(4, 9, 4), "dout must be of shape"),
    ("activation_gradient", "slope", -0.5, "slope must be 0 or more"),
    ("activation_gradient", "dbias", zeros(4), "dbias must be of shape"),
    ("activation_gradient", "dout", zeros(0, 9, 3), "dout must not be empty"),
]  # fmt: skip


@pytest.mark.parametrize("function", RIGHT)
def test_the_right_calls_are_right(function: str) -> None:
    getattr(_native, function)(**RIGHT[function]())


@pytest.mark.parametrize(("function", "argument", "value", "message"), WRONG)
def test_a_wrong_argument_is_one_clear_line(
    function: str, argument: str, value: object, message: str
) -> None:
    arguments = {**RIGHT[function](), argument: value}
    with pytest.raises((ValueError, TypeError)) as error:
        getattr(_native, function)(**arguments)
    assert re.match(f"{function}: .*{message}", str(error.value)), str(error.value)
    assert "\n" not in str(error.value)


def test_words_of_wrong_arguments() -> None:
    for wrong in ({"rows": -1}, {"seed": 2**64}, {"stream": -1}, {"first_row": "0"}):
        arguments: dict[str, Any] = {"seed": 1, "step": 0, "stream": 0, "rows": 2, "columns": 2}
        with pytest.raises((ValueError, TypeError), match=f"words: {next(iter(wrong))} must be"):
            _native.words(**{**arguments, **wrong})


def test_an_unknown_instruction_set() -> None:
    with pytest.raises(ValueError, match="cannot run 'mmx'"):
        _native.use_instruction_set("mmx")


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C++ test, built with the address and undefined behaviour sanitizers."""
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler")
    tools = Path(sys.executable).parent
    build = tmp_path_factory.mktemp("native")
    ninja = f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}"
    for arguments in (
        ["-S", TREE, "-B", build, "-G", "Ninja", ninja, "-DFASTINFOGAN_SANITIZE=ON"],
        ["--build", build],
    ):
        done = subprocess.run(
            [tools / "cmake", *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning:" not in done.stdout
    return build


@pytest.mark.slow
def test_the_cpp_test_passes_under_the_sanitizers(sanitized: Path) -> None:
    ctest = Path(sys.executable).parent / "ctest"
    done = subprocess.run(
        [ctest, "--test-dir", sanitized, "--output-on-failure", "--no-tests=error"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "UBSAN_OPTIONS": "print_stacktrace=1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_instruction_sets_share_no_functions(sanitized: Path) -> None:
    """Of functions of one name the linker keeps one, perhaps one that this processor cannot run."""
    if not shutil.which("nm"):
        pytest.skip("no nm")
    objects = sorted(sanitized.glob("CMakeFiles/*_*.dir/**/kernels.cpp.o"))
    assert objects
    for path in objects:
        name = path.relative_to(sanitized / "CMakeFiles").parts[0][
            len("operations_") : -len(".dir")
        ]
        listed = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True)
        shared = re.findall(r" [uVW] (.*)", listed.stdout)
        assert shared
        assert not [symbol for symbol in shared if f"fastinfogan::{name}::" not in symbol]
