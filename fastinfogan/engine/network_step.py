"""A network's forward and backward pass and its update, written out: no autograd, no lookups."""

import copy
import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from fastinfogan.nn import Chain, frozen_statistics
from fastinfogan.optim import Adam
from fastinfogan_kernels.adam.adam import NO_LAUNCHER, MultiTensorAdam, adam_op, make_launcher
from fastinfogan_kernels.conv_block import cpu_backend, triton_backend
from fastinfogan_kernels.conv_block.deferred import Deferred
from fastinfogan_kernels.conv_block.layers import ChainInput
from fastinfogan_kernels.conv_block.sync_batch_norm import ProcessGroup
from fastinfogan_kernels.inputs.draw import DrawnCodes
from fastinfogan_kernels.latents import LatentSpec
from fastinfogan_kernels.objective.d_head import d_head_objective
from fastinfogan_kernels.objective.q_head import q_head_objective
from fastinfogan_kernels.runtime.launch import Implementation, choose, nbytes

_Networks = TypeVar("_Networks", bound=nn.Module)


class NetworkStep:
    """One network in one of the two steps, on batches of one shape; traceable and capturable.

    Args:
        network: in training mode, by batch statistics; its tensors must not be reallocated.
        shape: of an input, (C, H, W) or (features,).
        batch: number of inputs.
        groups: number of equal parts of the batch, each with its own batch statistics.
        dtype: of the feature maps.
        impl: the backend.
        process_group: the processes that share batch statistics.
        trained: whether its parameters get gradients and its running statistics are updated.

    Attributes:
        out: shape of an output, (C, H, W) or (features,).
        gradients: of the trained parameters, in the network's order, of the last backward pass.
        batches_tracked: BN's num_batches_tracked buffers; each iteration adds `groups` to them.
        trained: as given.
        operand_bytes: of each layer's input, weight and output.
        groups: as given.
    """

    def __init__(
        self,
        network: Chain,
        shape: tuple[int, ...],
        batch: int,
        *,
        groups: int = 1,
        dtype: torch.dtype,
        impl: Implementation,
        process_group: ProcessGroup = None,
        trained: bool,
    ) -> None:
        with nullcontext() if trained else frozen_statistics(network):
            calls = network.calls(shape, batch, groups)
        self.out = calls[-1].out
        self.groups = groups
        self.trained = trained
        features = [
            batch * math.prod(each) * dtype.itemsize
            for each in (shape, *(call.out for call in calls))
        ]
        weights = [nbytes(call.tensors.weight) for call in calls]
        self.operand_bytes = list(zip(features[:-1], weights, features[1:], strict=True))
        self._layers = [call.layer for call in calls]
        self._tensors = [call.tensors for call in calls]
        self._impl: Implementation = impl
        chosen = choose(impl, self._tensors[0].weight.device)
        self._chain: Any = triton_backend if chosen == "triton" else cpu_backend
        self._source = ChainInput(dtype, process_group)
        self._needs_grad = [
            [trained and isinstance(t, Parameter) and t.requires_grad for t in layer]
            for layer in self._tensors
        ]
        norms = [call.norm for call in calls if trained and call.norm is not None]
        self.batches_tracked = [
            n.num_batches_tracked for n in norms if n.num_batches_tracked is not None
        ]
        self.gradients: list[Tensor] = []
        self._saved: tuple[Tensor, list[Tensor | None]] | None = None

    def _backward(
        self, dout: Tensor, *, input_gradient: bool = True, bias_gradient: Tensor | None = None
    ) -> Tensor | None:
        assert self._saved is not None, "backward follows one forward"
        (x, saved), self._saved = self._saved, None
        dx: Tensor | None
        dx, gradients = self._chain.backward(
            x, self._source, self._layers, self._tensors, self.groups, saved, dout,
            self._needs_grad, input_gradient=input_gradient, bias_gradient=bias_gradient,
        )  # fmt: skip
        self.gradients = [g for g in gradients if g is not None]
        return dx


class ChainStep(NetworkStep):
    """The generator or the trunk, which give feature maps."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute the network.

        Args:
            x: (batch, height, width, channels), contiguous; a row of features is of height and
                width 1.

        Returns:
            Its last block's output, likewise.
        """
        out: Tensor
        out, saved = self._chain.forward(x, self._source, self._layers, self._tensors, self.groups)
        self._saved = (x, saved)
        return out

    def backward(self, dout: Tensor) -> Tensor:
        """Return the gradient of the last input; the parameters' are left in `gradients`.

        Args:
            dout: gradient of the output, of its shape and dtype.
        """
        dx = self._backward(dout)
        assert dx is not None
        return dx

    def backward_parameters(self, dout: Tensor) -> None:
        """Compute the parameters' gradients alone; see `backward`."""
        self._backward(dout, input_gradient=False)


class _HeadStep(NetworkStep):
    """A head, whose last layer is one operation with its part of the objective."""

    def _features(self, x: Tensor) -> tuple[Deferred, list[Tensor | None]]:
        """Return the last layer's input, and what is saved for the backward pass."""
        before = (self._layers[:-1], self._tensors[:-1])
        found: tuple[Deferred, list[Tensor | None]] = self._chain.forward_deferred(
            x, self._source, *before, self.groups
        )
        return found

    def _save(
        self, x: Tensor, saved: list[Tensor | None], gradient: Tensor, bias_gradient: Tensor
    ) -> None:
        """Save the gradients of the last layer's output and bias, as the objective left them."""
        self._last_gradients = (gradient[:, None, None], bias_gradient)
        self._saved = (x, self._chain.saved_of_head(saved, self._last_gradients[0]))

    def backward(self) -> Tensor:
        """Return the gradient of the last input; the parameters' are left in `gradients`."""
        gradient, bias_gradient = self._last_gradients
        dx = self._backward(gradient, bias_gradient=bias_gradient)
        assert dx is not None
        return dx


class DHeadStep(_HeadStep):
    """D's head, up to its losses."""

    def losses(
        self, x: Tensor, targets: Sequence[int], scale: float | Tensor, counts: Tensor
    ) -> Tensor:
        """Compute the losses; `backward` differentiates scale times their sum.

        Args:
            x: the trunk's output, (batch, height, width, channels).
            targets: of each group of rows: 1 for real, 0 for generated.
            scale: of the gradients; a number, or fp32 (1,) on the device.
            counts: int32 (2,): rows that are not finite, and an arrival counter.

        Returns:
            (groups,), means over a group, in nats.
        """
        last = self._tensors[-1]
        features, saved = self._features(x)
        found = d_head_objective(
            features, last.weight, last.bias, targets, scale, counters=counts, impl=self._impl
        )
        self._save(x, saved, found.gradient[:, None], found.bias_gradient)
        return found.losses


class QHeadStep(_HeadStep):
    """Q's head, up to the log-likelihood of the codes."""

    def log_likelihood(
        self,
        x: Tensor,
        codes: DrawnCodes,
        spec: LatentSpec,
        weights: Sequence[float] | Tensor,
        counts: Tensor,
    ) -> Tensor:
        """Compute the log-likelihoods; `backward` differentiates their weighted sum.

        Args:
            x: the trunk's output, (batch, height, width, channels).
            codes: that the images were generated from.
            spec: layout of the codes.
            weights: of each code in the sum; numbers, or fp32 (codes,) on the device.
            counts: int32 (2 + codes,): classes out of range, rows that are not finite, and
                arrival counters.

        Returns:
            (codes,), means over the batch, in nats.
        """
        last = self._tensors[-1]
        features, saved = self._features(x)
        found = q_head_objective(
            features, last.weight, last.bias, codes.classes, codes.continuous, spec,
            weights=weights, counters=counts, impl=self._impl,
        )  # fmt: skip
        self._save(x, saved, found.gradient, found.bias_gradient)
        return found.values


class OptimizerStep:
    """Adam's update of one parameter group by gradients it is given; traceable and capturable.

    Args:
        adam: with its state and working copies made; neither may be reallocated.
        found_inf: int32, one element; nothing is updated unless it is 0.
        grad_scale: fp32, one element, by which gradients are divided; those that are not finite
            are counted in `found_inf` first. None: gradients are not scaled.
        by_triton: whether Triton's kernel computes it.
    """

    def __init__(
        self, adam: Adam, found_inf: Tensor, grad_scale: Tensor | None, *, by_triton: bool
    ) -> None:
        (self._group,) = adam.param_groups
        parameters = self._group["params"]
        state = [adam.state[p] for p in parameters]
        moments = ([each[name] for each in state] for name in ("exp_avg", "exp_avg_sq", "step"))
        copied = [i for i, p in enumerate(parameters) if p in adam.working_copies]
        copies = [adam.working_copies[parameters[i]].detach() for i in copied]
        self._written = ([p.detach() for p in parameters], *moments, copies, copied)
        self._found_inf, self._grad_scale = found_inf, grad_scale
        self._launcher: MultiTensorAdam | None = None
        self._number = NO_LAUNCHER
        if by_triton:
            self._launcher, self._number = make_launcher(parameters[0].device)

    def reserve(self, captures: int) -> None:
        """Prepare, at the next update, for this number of CUDA-graph captures after it."""
        if self._launcher is not None:
            # Scaled gradients are checked first, by another launch.
            self._launcher.reserve(captures * (1 if self._grad_scale is None else 2))

    def __call__(self, gradients: Sequence[Tensor]) -> None:
        """Update the parameters; one gradient for each, in the group's order."""
        group = self._group
        adam_op(
            *self._written,
            gradients,
            self._found_inf,
            self._grad_scale,
            group["lr"],
            *group["betas"],
            group["eps"],
            self._number,
        )


def with_working_copies(
    networks: _Networks, dtype: torch.dtype
) -> tuple[_Networks, dict[Tensor, Tensor]]:
    """Copy networks so that they compute with working copies of the master weights.

    Args:
        networks: with the master weights.
        dtype: of the working copies.

    Returns:
        Networks that share all other tensors with the given ones, and the working copy of each
        weight of two or more dimensions, if its dtype is another one.
    """
    copies: dict[Tensor, Tensor] = {
        p: nn.Parameter(p.detach().to(dtype), p.requires_grad)
        for p in networks.parameters()
        if p.dim() > 1 and p.dtype != dtype
    }
    shared = {id(t): t for t in (*networks.parameters(), *networks.buffers())}
    replaced = {id(p): each for p, each in copies.items()}
    return copy.deepcopy(networks, shared | replaced), copies
