"""The objective's operations: the likelihood of the codes, and the heads' last layers."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.accuracy import check_accuracy
from bench.baselines import ops as baselines
from bench.cases import SEED, Case, Setting
from fastinfogan.networks import InfoGAN
from fastinfogan_kernels.conv_block.deferred import Deferred
from fastinfogan_kernels.inputs.draw import draw_codes
from fastinfogan_kernels.objective.d_head import d_head_objective
from fastinfogan_kernels.objective.likelihood import likelihood_with_gradient
from fastinfogan_kernels.objective.q_head import q_head_objective
from fastinfogan_kernels.philox import Stream
from fastinfogan_kernels.runtime.launch import nbytes

Results = Callable[[], tuple[Tensor, ...]]


def likelihood(at: Setting) -> Case:
    """Compare the log likelihood of the codes, and its gradient by Q's output."""
    spec = at.experiment.latents
    output = at.randn(at.batch, spec.output_width)
    targets = _targets(at)

    def baseline(composed: Callable[..., Tensor], of: torch.dtype) -> Results:
        def run() -> tuple[Tensor, ...]:
            leaf = output.to(of).detach().requires_grad_()
            values = composed(leaf, *targets, spec)
            return values.detach(), *baselines.gradient_of(values, leaf)

        return run

    return _case(
        at, lambda: likelihood_with_gradient(output, *targets, spec), baseline,
        baselines.log_likelihoods, bytes=2 * nbytes(output) + nbytes(*targets),
    )  # fmt: skip


def q_head(at: Setting) -> Case:
    """Compare Q's last layer with the likelihood, and gradients by its output and bias."""
    spec, targets = at.experiment.latents, _targets(at)
    layer = _layer(at, "q_head", at.batch, spec.output_width)
    return _case(
        at, lambda: q_head_objective(Deferred(layer[0]), *layer[1:], *targets, spec)[1:],
        _after(layer, *targets, spec), baselines.log_likelihoods,
        flops=2 * at.batch * layer[1].numel(), bytes=nbytes(*layer[:2], *targets),
    )  # fmt: skip


def d_head(at: Setting) -> Case:
    """Compare D's last layer with its losses on real and generated images, and the gradients."""
    layer = _layer(at, "d_head", 2 * at.batch, 1)
    return _case(
        at, lambda: d_head_objective(Deferred(layer[0]), *layer[1:], (1, 0))[1:],
        _after(layer, (1, 0)), baselines.losses,
        flops=4 * at.batch * layer[1].numel(), bytes=nbytes(*layer[:2]),
    )  # fmt: skip


def _targets(at: Setting) -> tuple[Tensor, Tensor]:
    codes = draw_codes(at.experiment.latents, SEED, 0, Stream.D_STEP, at.batch, device=at.device)
    return codes.classes, codes.continuous


def _layer(at: Setting, head: str, rows: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the input, weight and bias of a head's last layer."""
    with torch.device("meta"):
        depth = getattr(InfoGAN(at.experiment), head)[-1].layer.weight.shape[1]
    return (
        at.randn(rows, depth),
        at.randn(width, depth, seed=2) / depth**0.5,
        at.randn(width, dtype=torch.float32, seed=3) * 0.1,
    )


def _after(
    layer: Sequence[Tensor],
    *arguments: Any,  # noqa: ANN401 - of the objective
) -> Callable[[Callable[..., Tensor], torch.dtype], Results]:
    """Compose the layer, an objective of its output and further arguments, and the gradients."""

    def baseline(composed: Callable[..., Tensor], of: torch.dtype) -> Results:
        tensors = [t.to(of) for t in layer]

        def run() -> tuple[Tensor, ...]:
            output = torch.nn.functional.linear(*tensors).requires_grad_()
            values = composed(output, *arguments)
            (gradient,) = baselines.gradient_of(values, output)
            return values.detach(), gradient, baselines.wide(gradient).sum(0)

        return run

    return baseline


def _case(
    at: Setting,
    run: Results,
    baseline: Callable[[Callable[..., Tensor], torch.dtype], Results],
    composed: Callable[..., Tensor],
    **more: int,
) -> Case:
    """Make a case of an objective and its gradients, checked against the same composition."""

    def named(results: Results) -> dict[str, Tensor]:
        return dict(zip(("values", "gradient", "bias gradient"), results(), strict=False))

    def check() -> None:
        expected, truth = (named(baseline(composed, of)) for of in (at.dtype, at.true_dtype))
        check_accuracy(named(run), expected, truth, at.dtype)

    made = at.with_compiled(lambda f: baseline(f, at.dtype), composed)
    return at.case(run, check=check, **made, **more)
