"""The blocks as others use them: a model of their own, fused, eager and under torch.compile."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from bench.gpu_report.judge import judge
from bench.gpu_report.stage import FailedError
from bench.gpu_report.workload import normal
from fastinfogan.engine.precision import PRECISIONS
from fastinfogan.nn import fuse


def _model(device: torch.device) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 32, 4, 2, 1),
        nn.LeakyReLU(0.1),
        nn.Conv2d(32, 48, 4, 2, 1),
        nn.BatchNorm2d(48),
        nn.LeakyReLU(0.1),
        nn.Flatten(),
        nn.Linear(48 * 4 * 4, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 5),
    ).to(device, memory_format=torch.channels_last)


def fused_model(device: torch.device, dtype: torch.dtype, *, compiled: bool) -> dict[str, Any]:
    """Output and gradients of a fused model, by autocast for 16 bits, against the model in fp64.

    Raises:
        FailedError: they are too far off, or nothing was fused.
    """
    plain = _model(device)
    ours, truth = copy.deepcopy(plain), copy.deepcopy(plain).double()
    report = fuse(ours)
    if not report.fused:
        raise FailedError(f"nothing was fused: {report}", {})
    x = normal((16, 3, 16, 16), 1).to(device).contiguous(memory_format=torch.channels_last)
    run: Any = torch.compile(ours, fullgraph=True, dynamic=False) if compiled else ours

    def results(model: nn.Module, call: Any, x: Tensor) -> dict[str, Tensor]:  # noqa: ANN401
        x = x.clone().requires_grad_()
        narrow = dtype != torch.float32 and x.dtype == torch.float32
        with torch.autocast(device.type, dtype, enabled=narrow):
            out: Tensor = call(x)
        (out.double() * normal(tuple(out.shape), 2).to(out.device).double()).sum().backward()
        assert x.grad is not None
        found = {"out": out.detach(), "input": x.grad}
        # A bias in front of batch norm has no gradient but noise.
        biases = ("2.bias", "6.bias")
        found |= {
            name: p.grad
            for name, p in model.named_parameters()
            if p.grad is not None and name not in biases
        }
        return found

    with PRECISIONS["fp32"].arithmetic():
        sides = [results(ours, run, x), results(plain, plain, x), results(truth, truth, x.double())]
    return {**judge(*sides, dtype, set(sides[2])), "fused": len(report.fused)}
