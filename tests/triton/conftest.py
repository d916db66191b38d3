"""Where the Triton kernels run: under Triton's interpreter on CPU tensors, or on a CUDA device.

TRITON_INTERPRET=1 python -m pytest tests/triton runs them anywhere; without it a GPU is needed.
Tests make what a kernel reads on `device`, and compute what they expect on the CPU.
"""

import pytest
import torch

from fastinfogan_kernels.runtime.launch import interpreted

needs_cuda = pytest.mark.skipif(
    interpreted() or not torch.cuda.is_available(),
    reason="needs a CUDA device: Triton's interpreter computes bf16 wrongly",
)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device whose tensors the kernels are tested on."""
    if interpreted():
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, or TRITON_INTERPRET=1")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(params=[torch.float16, pytest.param(torch.bfloat16, marks=needs_cuda)], ids=str)
def half(request: pytest.FixtureRequest) -> torch.dtype:
    """Each 16-bit dtype that the device computes rightly."""
    dtype: torch.dtype = request.param
    return dtype


@pytest.fixture(
    params=[torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=needs_cuda)], ids=str
)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Each dtype of rows and feature maps that the device computes correctly."""
    dtype: torch.dtype = request.param
    return dtype
