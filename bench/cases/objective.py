"""The objective's operations: likelihood of the codes, losses, the heads' last layers."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.baselines import ops as peers
from bench.cases import Case, Planned
from bench.cases.inputs import SEED, checked, randn, with_compiled
from bench.timing.clock import Run
from fastinfogan.engine.precision import PRECISIONS, ComputedIn
from fastinfogan.experiments import Experiment
from fastinfogan.networks import InfoGAN
from fastinfogan_kernels.conv_block.deferred import Deferred
from fastinfogan_kernels.inputs.draw import draw_codes
from fastinfogan_kernels.objective.adversarial import losses_with_gradient
from fastinfogan_kernels.objective.heads import d_head_objective, q_head_objective
from fastinfogan_kernels.objective.likelihood import likelihood_with_gradient
from fastinfogan_kernels.philox import Stream
from fastinfogan_kernels.runtime.launch import nbytes


def planned_losses(found: Sequence[ComputedIn], batch: int) -> Iterator[Planned]:
    """D's and G's losses, of any experiment."""
    for step, targets in (("D", (1, 0)), ("G", (1,))):
        for precision in found:
            name = f"losses of {step}, {precision}"
            yield Planned("ops", name, partial(_losses, name, precision, batch, targets), True)


def _drawn(e: Experiment, batch: int, device: torch.device) -> peers.Codes:
    codes = draw_codes(e.latents, SEED, 0, Stream.D_STEP, batch, device=device)
    return peers.Codes(codes.generator_input, codes.classes, codes.continuous)


def _likelihood(
    name: str, e: Experiment, precision: ComputedIn, batch: int, device: torch.device
) -> Case:
    spec, dtype = e.latents, PRECISIONS[precision].computed
    output = randn(batch, spec.output_width, device=device, dtype=dtype)
    _, *codes = _drawn(e, batch, device)

    def ours() -> tuple[Tensor, Tensor]:
        return likelihood_with_gradient(output, *codes, spec)

    def peer(composed: Callable[..., Tensor], of: torch.dtype = dtype) -> Run:
        def run() -> tuple[Tensor, Tensor]:
            leaf = output.to(of).detach().requires_grad_()
            values = composed(leaf, *codes, spec)
            return values.detach(), *peers.gradient_of(values, leaf)

        return run

    def named(found: Any) -> dict[str, Tensor]:  # noqa: ANN401
        return {"values": found[0], "gradient": found[1]}

    others, more = with_compiled(device, peer, peers.log_likelihoods)
    return Case(
        "ops",
        name,
        ours,
        others,
        lambda: checked(
            lambda: named(ours()), lambda of: named(peer(peers.log_likelihoods, of)()), dtype
        ),
        e.name,
        precision,
        batch,
        bytes=2 * nbytes(output) + nbytes(*codes),
        more=more,
    )


def _losses(
    name: str, precision: ComputedIn, batch: int, targets: tuple[int, ...], device: torch.device
) -> Case:
    dtype = PRECISIONS[precision].computed
    logits = randn(len(targets) * batch, device=device, dtype=dtype)

    def ours() -> tuple[Tensor, Tensor]:
        return losses_with_gradient(logits, targets)

    def peer(composed: Callable[..., Tensor], of: torch.dtype = dtype) -> Run:
        def run() -> tuple[Tensor, Tensor]:
            leaf = logits.to(of).detach().requires_grad_()
            values = composed(leaf, targets)
            return values.detach(), *peers.gradient_of(values, leaf)

        return run

    def named(found: Any) -> dict[str, Tensor]:  # noqa: ANN401
        return {"losses": found[0], "gradient": found[1]}

    others, more = with_compiled(device, peer, peers.losses)
    return Case(
        "ops",
        name,
        ours,
        others,
        lambda: checked(lambda: named(ours()), lambda of: named(peer(peers.losses, of)()), dtype),
        None,
        precision,
        batch,
        bytes=2 * nbytes(logits),
        more=more,
    )


def _q_head(
    name: str, e: Experiment, precision: ComputedIn, batch: int, device: torch.device
) -> Case:
    """Q's last layer with the likelihood of the codes, and the gradients by output and bias."""
    spec, dtype = e.latents, PRECISIONS[precision].computed
    with torch.device("meta"):
        last = InfoGAN(e).q_head[-1].layer
    depth = last.weight.shape[1]  # type: ignore[union-attr,index]
    rows = randn(batch, depth, device=device, dtype=dtype)
    weight = randn(spec.output_width, depth, device=device, dtype=dtype, seed=2) / depth**0.5
    bias = randn(spec.output_width, device=device, dtype=torch.float32, seed=3) * 0.1
    _, *codes = _drawn(e, batch, device)

    def ours() -> tuple[Tensor, ...]:
        return q_head_objective(Deferred(rows), weight, bias, *codes, spec)[1:]

    peer = partial(_layer_and, (*codes, spec), rows, weight, bias)
    others, more = with_compiled(device, peer, peers.log_likelihoods)
    return _head_case(
        name, e, precision, batch, ours, others, lambda of: peer(peers.log_likelihoods, of)(),
        ("values", "gradient", "bias gradient"), nbytes(rows, weight, *codes),
        2 * batch * weight.numel(), more,
    )  # fmt: skip


def _d_head(
    name: str, e: Experiment, precision: ComputedIn, batch: int, device: torch.device
) -> Case:
    """D's last layer with its losses on real and generated images, and the gradients."""
    dtype = PRECISIONS[precision].computed
    with torch.device("meta"):
        depth = InfoGAN(e).d_head[-1].layer.weight.shape[1]  # type: ignore[union-attr,index]
    rows = randn(2 * batch, depth, device=device, dtype=dtype)
    weight = randn(1, depth, device=device, dtype=dtype, seed=2) / depth**0.5
    bias = randn(1, device=device, dtype=torch.float32, seed=3) * 0.1

    def ours() -> tuple[Tensor, ...]:
        return d_head_objective(Deferred(rows), weight, bias, (1, 0))[1:]

    peer = partial(_layer_and, ((1, 0),), rows, weight, bias)
    others, more = with_compiled(device, peer, peers.losses)
    return _head_case(
        name, e, precision, batch, ours, others, lambda of: peer(peers.losses, of)(),
        ("losses", "gradient", "bias gradient"), nbytes(rows, weight), 4 * batch * depth, more,
    )  # fmt: skip


def _layer_and(
    arguments: tuple[Any, ...],
    rows: Tensor,
    weight: Tensor,
    bias: Tensor,
    composed: Callable[..., Tensor],
    of: torch.dtype | None = None,
) -> Callable[[], tuple[Tensor, ...]]:
    """The layer, an objective of its output and other arguments, and the gradients, by torch."""
    of = rows.dtype if of is None else of
    layer = [t.to(of) for t in (rows, weight, bias)]

    def run() -> tuple[Tensor, ...]:
        output = torch.nn.functional.linear(*layer).requires_grad_()
        values = composed(output, *arguments)
        (gradient,) = peers.gradient_of(values, output)
        return values.detach(), gradient, peers.wide(gradient).sum(0)

    return run


def _head_case(
    name: str,
    e: Experiment,
    precision: ComputedIn,
    batch: int,
    ours: Callable[[], tuple[Tensor, ...]],
    others: dict[str, Run],
    theirs: Callable[[torch.dtype], Any],
    parts: tuple[str, ...],
    read: int,
    flops: int,
    more: dict[str, str],
) -> Case:
    def named(found: Iterable[Tensor]) -> dict[str, Tensor]:
        return dict(zip(parts, found, strict=True))

    dtype = PRECISIONS[precision].computed
    return Case(
        "ops", name, ours, others,
        lambda: checked(lambda: named(ours()), lambda of: named(theirs(of)), dtype),
        e.name, precision, batch, flops, read, more=more,
    )  # fmt: skip


MAKERS: dict[str, Callable[..., Case]] = {
    "likelihood": _likelihood, "q head": _q_head, "d head": _d_head,
}  # fmt: skip
"""By name, those whose shapes are an experiment's."""
