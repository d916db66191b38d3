"""The log-likelihood of codes under Q, as a module for any project."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastinfogan.errors import InputError
from fastinfogan_kernels.latents import LatentSpec
from fastinfogan_kernels.objective.code_layout import (
    LikelihoodInputs,
    check_weights,
    code_table,
    constant,
    make_counters,
)
from fastinfogan_kernels.objective.likelihood import REDUCTIONS, Reduction, q_head_log_likelihood
from fastinfogan_kernels.runtime.launch import Implementation


class QHeadLikelihood(nn.Module):
    """log Q(c|x) of every code, from the raw output of a network Q.

    The variational part of InfoGAN's bound, and the likelihood of any mix of classes and Gaussians:
    log softmax at the true class, and the log density with its log(2 pi) / 2. Differentiable by
    the output; in eager mode and under `torch.compile(fullgraph=True)`, with autocast, on CPU and
    GPU. One launch for all codes, in fp32 for outputs of up to 32 bits and in fp64 for fp64.

    Invalid data is an error at once on CPU in eager mode. Elsewhere the device is not waited for:
    invalid rows become NaN and are counted until `check`.

    Args:
        spec: the codes, and how a row of Q's output is laid out: the logits of each categorical
            code, the means of the continuous ones, their raw log deviations.
        weights: factor of each code's log-likelihood; None for 1.
        reduction: over the batch: "mean", "sum", or "none".
        impl: "auto", "triton", "native" or "reference".

    Attributes:
        counters: int32, see `fastinfogan_kernels.objective.code_layout.make_counters`.

    Raises:
        InputError: weights or reduction do not fit.
    """

    counters: Tensor

    def __init__(
        self,
        spec: LatentSpec,
        *,
        weights: Sequence[float] | None = None,
        reduction: Reduction = "mean",
        impl: Implementation = "auto",
    ) -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise InputError(f"reduction must be one of {', '.join(REDUCTIONS)}, not {reduction!r}")
        self.spec = spec
        self.weights = None if weights is None else check_weights(weights, spec)
        self.reduction: Reduction = reduction
        self.impl: Implementation = impl
        self.register_buffer("counters", make_counters(spec), persistent=False)
        self._move_tables()

    def forward(self, output: Tensor, classes: Tensor, continuous: Tensor) -> Tensor:
        """Return log-likelihoods, in nats.

        Args:
            output: (B, spec.output_width), fp32, bf16, fp16 or fp64.
            classes: integers (B, categorical codes); (B, 0) without any.
            continuous: floating point (B, continuous codes).

        Returns:
            (codes,) means or sums over the batch, or (B, codes) for reduction "none"; fp32, or fp64
            of an fp64 output.

        Raises:
            InputError: shapes, dtypes or devices do not fit; on CPU in eager mode also a class out
                of range, a NaN or an infinity, with its code and row.
        """
        if output.device != self.counters.device:
            raise InputError(
                f"Q's output is on {output.device}, this QHeadLikelihood on "
                f"{self.counters.device}; move it there with .to()"
            )
        at_once = output.device.type == "cpu" and not torch.compiler.is_compiling()
        counters = make_counters(self.spec) if at_once else self.counters
        values = q_head_log_likelihood(
            output,
            classes,
            continuous,
            self.spec,
            reduction=self.reduction,
            counters=counters,
            table=self._table,
            impl=self.impl,
        )
        if at_once and any(counters[:2].tolist()):
            inputs = LikelihoodInputs(output, classes, continuous)
            raise InputError(str(inputs.first_invalid(self.spec)))
        if self.weights is None or self._weights is None:
            return values
        wide = values.dtype == torch.float64
        return values * (
            constant(self.weights, values.device, values.dtype) if wide else self._weights
        )

    def check(self) -> None:
        """Wait for the device and raise what was invalid since the last check.

        Raises:
            InputError: class indices out of range, or rows of Q's output with a NaN or an infinity;
                says how many of each.
        """
        classes, rows = self.counters[:2].tolist()
        if classes or rows:
            self.counters[:2].zero_()
            raise InputError(
                f"since the last check {classes} class indices were out of range, and {rows} rows "
                "of Q's output had a NaN or an infinity; their log-likelihoods are NaN or infinite"
            )

    def extra_repr(self) -> str:
        """Return codes, weights, reduction and backend."""
        return (
            f"codes={len(self.spec.codes)}, weights={self.weights}, "
            f"reduction={self.reduction}, impl={self.impl}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:  # noqa: ANN401
        had_storage = self.counters.device.type != "meta"
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if not had_storage:
            self.counters.zero_()
        self._move_tables()
        return self

    def _move_tables(self) -> None:
        """Put the spec's tables on the module's device; as buffers .half() would round them."""
        device = self.counters.device
        self._table = code_table(self.spec, device)
        self._weights = (
            None if self.weights is None else constant(self.weights, device, torch.float32)
        )
