"""The C++ kernels through their bindings: what no operation of the package passes on."""

import numpy as np
import pytest
import torch

from fastinfogan_kernels.runtime.launch import native_available

if not native_available():
    pytest.skip("_native not compiled", allow_module_level=True)

from fastinfogan_kernels import _native


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("scale", [1.0, 8.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_adam_takes_low_precision_gradients_and_a_scale(dtype: torch.dtype, scale: float) -> None:
    p, g = torch.randn(1001), (torch.randn(1001) * scale).to(dtype)
    m, v = torch.randn(1001), torch.rand(1001)
    copy = torch.empty(1001, dtype=torch.bfloat16 if scale == 1.0 else torch.float16)
    exact_p, exact_m, exact_v = (t.double() for t in (p, m, v))
    exact_g = g.double() / scale
    _native.adam([p], [g], [m], [v], [copy], 1e-2, 0.9, 0.99, 1e-3, 3.0, scale)
    expected_m = 0.9 * exact_m + 0.1 * exact_g
    expected_v = 0.99 * exact_v + 0.01 * exact_g**2
    root = (expected_v / (1 - 0.99**3)).sqrt() + 1e-3
    expected_p = exact_p - 1e-2 / (1 - 0.9**3) * expected_m / root
    for actual, expected in ((p, expected_p), (m, expected_m), (v, expected_v)):
        torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(copy, p.to(copy.dtype))


def test_threads_are_torchs() -> None:
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        assert _native.threads() == count


def test_numpy_arrays_share_their_memory_too() -> None:
    mean, rstd, variance = (np.zeros((1, 1), np.float32) for _ in range(3))
    y = torch.tensor([[[1.0], [3.0]]])
    _native.norm_statistics(y, 1, mean, rstd, variance, 0.0)  # type: ignore[arg-type]
    assert (mean.item(), rstd.item(), variance.item()) == (2.0, 1.0, 1.0)
