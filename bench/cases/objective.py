"""The objective's operations: the likelihood of the codes, and the heads' last layers."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.accuracy import check_accuracy
from bench.baselines import ops as baselines
from bench.cases import Case, Setting
from bench.cases.inputs import SEED, randn, with_compiled
from fastinfogan.networks import InfoGAN
from fastinfogan_kernels.conv_block.deferred import Deferred
from fastinfogan_kernels.inputs.draw import draw_codes
from fastinfogan_kernels.objective.d_head import d_head_objective
from fastinfogan_kernels.objective.likelihood import likelihood_with_gradient
from fastinfogan_kernels.objective.q_head import q_head_objective
from fastinfogan_kernels.philox import Stream
from fastinfogan_kernels.runtime.launch import nbytes

Results = Callable[[], tuple[Tensor, ...]]


def _targets(at: Setting) -> tuple[Tensor, Tensor]:
    codes = draw_codes(at.experiment.latents, SEED, 0, Stream.D_STEP, at.batch, device=at.device)
    return codes.classes, codes.continuous


def _case(
    at: Setting,
    run: Results,
    baseline: Callable[[Callable[..., Tensor], torch.dtype], Results],
    composed: Callable[..., Tensor],
    names: tuple[str, ...],
    **more: int,
) -> Case:
    """Make a case of an objective and its gradients, checked against the same composition."""

    def named(found: Iterable[Tensor]) -> dict[str, Tensor]:
        return dict(zip(names, found, strict=True))

    def check() -> None:
        expected, truth = (baseline(composed, of)() for of in (at.dtype, at.true_dtype))
        check_accuracy(named(run()), named(expected), named(truth), at.dtype)

    made = with_compiled(at.device, lambda f: baseline(f, at.dtype), composed)
    return at.case(run, check=check, **made, **more)


def likelihood(at: Setting) -> Case:
    """The log likelihood of the codes, and its gradient by Q's output."""
    spec = at.experiment.latents
    output = randn(at.batch, spec.output_width, device=at.device, dtype=at.dtype)
    targets = _targets(at)

    def baseline(composed: Callable[..., Tensor], of: torch.dtype) -> Results:
        def run() -> tuple[Tensor, ...]:
            leaf = output.to(of).detach().requires_grad_()
            values = composed(leaf, *targets, spec)
            return values.detach(), *baselines.gradient_of(values, leaf)

        return run

    return _case(
        at, lambda: likelihood_with_gradient(output, *targets, spec), baseline,
        baselines.log_likelihoods, ("values", "gradient"),
        bytes=2 * nbytes(output) + nbytes(*targets),
    )  # fmt: skip


def q_head(at: Setting) -> Case:
    """Q's last layer with the likelihood of the codes, and gradients by its output and bias."""
    spec = at.experiment.latents
    with torch.device("meta"):
        last = InfoGAN(at.experiment).q_head[-1].layer
    layer = _layer(at, at.batch, spec.output_width, last.weight.shape[1])  # type: ignore[union-attr,index]
    targets = _targets(at)
    return _case(
        at, lambda: q_head_objective(Deferred(layer[0]), *layer[1:], *targets, spec)[1:],
        partial(_layer_and, (*targets, spec), layer), baselines.log_likelihoods,
        ("values", "gradient", "bias gradient"), flops=2 * at.batch * layer[1].numel(),
        bytes=nbytes(*layer[:2], *targets),
    )  # fmt: skip


def d_head(at: Setting) -> Case:
    """D's last layer with its losses on real and generated images, and the gradients."""
    with torch.device("meta"):
        depth = InfoGAN(at.experiment).d_head[-1].layer.weight.shape[1]  # type: ignore[union-attr,index]
    layer = _layer(at, 2 * at.batch, 1, depth)
    return _case(
        at, lambda: d_head_objective(Deferred(layer[0]), *layer[1:], (1, 0))[1:],
        partial(_layer_and, ((1, 0),), layer), baselines.losses,
        ("losses", "gradient", "bias gradient"), flops=4 * at.batch * depth,
        bytes=nbytes(*layer[:2]),
    )  # fmt: skip


def _layer(at: Setting, rows: int, width: int, depth: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a layer's input, weight and bias."""
    return (
        randn(rows, depth, device=at.device, dtype=at.dtype),
        randn(width, depth, device=at.device, dtype=at.dtype, seed=2) / depth**0.5,
        randn(width, device=at.device, dtype=torch.float32, seed=3) * 0.1,
    )


def _layer_and(
    arguments: tuple[Any, ...],
    layer: tuple[Tensor, ...],
    composed: Callable[..., Tensor],
    of: torch.dtype,
) -> Results:
    """Compose the layer, an objective of its output and further arguments, and the gradients."""
    tensors = [t.to(of) for t in layer]

    def run() -> tuple[Tensor, ...]:
        output = torch.nn.functional.linear(*tensors).requires_grad_()
        values = composed(output, *arguments)
        (gradient,) = baselines.gradient_of(values, output)
        return values.detach(), gradient, baselines.wide(gradient).sum(0)

    return run
