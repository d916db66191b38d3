"""A network's way forward and back, written out: no autograd, and only the gradients wanted."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from fastinfogan.nn import Chain, frozen_statistics
from fastinfogan.nn.run import resolve
from fastinfogan_kernels.conv_block import aten_chain, triton_chain
from fastinfogan_kernels.conv_block.chain_input import Source
from fastinfogan_kernels.conv_block.deferred import Deferred
from fastinfogan_kernels.conv_block.sync_batch_norm import Group
from fastinfogan_kernels.inputs.draw import DrawnCodes
from fastinfogan_kernels.latents import LatentSpec
from fastinfogan_kernels.objective.heads import d_head_objective, q_head_objective
from fastinfogan_kernels.runtime.backend import Implementation, choose
from fastinfogan_kernels.runtime.launch import nbytes


class Network:
    """One network on batches of one shape, by batch statistics; traceable and capturable.

    Args:
        network: in training mode; its tensors must stay where they are.
        shape: of an input, (C, H, W) or (features,).
        batch: inputs.
        groups: equal parts of the batch with statistics of their own.
        dtype: of the maps.
        impl: who computes.
        process_group: with whom statistics are shared.
        trained: whether its parameters have gradients and its running statistics move.

    Attributes:
        out: shape of an output, (C, H, W) or (features,).
        gradients: of the trained parameters, in the network's order, of the last way back.
        counters: of the batches that running statistics have taken in; each run takes in `groups`.
        trained: as given.
        products: bytes of each layer's input, weight and result.
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
        process_group: Group = None,
        trained: bool,
    ) -> None:
        with nullcontext() if trained else frozen_statistics(network):
            stages = resolve(network.stages(), shape, batch, groups)
        self.out = stages[-1].out
        self.groups = groups
        self.trained = trained
        maps = [
            batch * math.prod(each) * dtype.itemsize for each in (shape, *(s.out for s in stages))
        ]
        weights = [nbytes(stage.tensors.weight) for stage in stages]
        self.products = list(zip(maps[:-1], weights, maps[1:], strict=True))
        self._layers = [stage.layer for stage in stages]
        self._tensors = [stage.tensors for stage in stages]
        self._impl: Implementation = impl
        chosen = choose(impl, self._tensors[0].weight.device)
        self._how: Any = triton_chain if chosen == "triton" else aten_chain
        self._source = Source(dtype, process_group)
        self._wanted = [
            [trained and isinstance(t, Parameter) and t.requires_grad for t in layer]
            for layer in self._tensors
        ]
        norms = [stage.norm for stage in stages if trained and stage.norm is not None]
        self.counters = [n.num_batches_tracked for n in norms if n.num_batches_tracked is not None]
        self.gradients: list[Tensor] = []
        self._kept: tuple[Tensor, list[Tensor | None]] | None = None

    def _back(
        self, dout: Tensor, *, input_gradient: bool = True, bias_gradient: Tensor | None = None
    ) -> Tensor | None:
        assert self._kept is not None, "the way back follows one forward"
        (x, kept), self._kept = self._kept, None
        dx: Tensor | None
        dx, gradients = self._how.backward(
            x, self._source, self._layers, self._tensors, self.groups, kept, dout, self._wanted,
            input_gradient=input_gradient, bias_gradient=bias_gradient,
        )  # fmt: skip
        self.gradients = [g for g in gradients if g is not None]
        return dx


class Pass(Network):
    """A network that makes maps of maps."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute the network.

        Args:
            x: maps (batch, height, width, channels), contiguous; a row of features is a 1x1 map.

        Returns:
            Its last block's maps.
        """
        out: Tensor
        out, kept = self._how.forward(x, self._source, self._layers, self._tensors, self.groups)
        self._kept = (x, kept)
        return out

    def backward(self, dout: Tensor) -> Tensor:
        """The gradient of the last forward's input; the parameters' are left in `gradients`.

        Args:
            dout: of its result, of the same shape and dtype.
        """
        dx = self._back(dout)
        assert dx is not None
        return dx

    def backward_to_weights(self, dout: Tensor) -> None:
        """As `backward`, for a network whose input needs no gradient."""
        self._back(dout, input_gradient=False)


class _Head(Network):
    """A network whose last layer ends in its part of the objective, in one operation with it."""

    def _features(self, x: Tensor) -> tuple[Deferred, list[Tensor | None]]:
        """What the last layer reads."""
        before = (self._layers[:-1], self._tensors[:-1])
        found: tuple[Deferred, list[Tensor | None]] = self._how.features(
            x, self._source, *before, self.groups
        )
        return found

    def _keep(
        self, x: Tensor, kept: list[Tensor | None], gradient: Tensor, bias_gradient: Tensor
    ) -> None:
        """Keep what the objective left: the gradients of the last layer's result and bias."""
        self._from = (gradient[:, None, None], bias_gradient)
        self._kept = (x, self._how.keep(kept, self._from[0]))

    def backward(self) -> Tensor:
        """The gradient of the maps read last; the parameters' are left in `gradients`."""
        gradient, bias_gradient = self._from
        dx = self._back(gradient, bias_gradient=bias_gradient)
        assert dx is not None
        return dx


class DHead(_Head):
    """D's head, up to its losses."""

    def losses(
        self, x: Tensor, targets: Sequence[int], scale: float | Tensor, counted: Tensor
    ) -> Tensor:
        """Compute the losses; `backward` differentiates scale times their sum.

        Args:
            x: the trunk's maps, (batch, height, width, channels).
            targets: of each group of rows, 1 for "should be called real", 0 for "generated".
            scale: a number, or fp32 (1,) on the device.
            counted: int32 (2,): rows that are not finite, and the kernel's own.

        Returns:
            (groups,), means over a group, in nats.
        """
        last = self._tensors[-1]
        features, kept = self._features(x)
        found = d_head_objective(
            features, last.weight, last.bias, targets, scale, counted=counted, impl=self._impl
        )
        self._keep(x, kept, found.gradient[:, None], found.bias_gradient)
        return found.losses


class QHead(_Head):
    """Q's head, up to the log-likelihood of the codes."""

    def log_likelihood(
        self,
        x: Tensor,
        codes: DrawnCodes,
        spec: LatentSpec,
        weights: Sequence[float] | Tensor,
        counted: Tensor,
    ) -> Tensor:
        """Compute the log-likelihoods; `backward` differentiates their weighted sum.

        Args:
            x: the trunk's maps, (batch, height, width, channels).
            codes: that the images were generated from.
            spec: what stands where.
            weights: of each code in the sum; numbers, or fp32 (codes,) on the device.
            counted: int32 (2 + codes,), see `kernels.targets.counters`.

        Returns:
            (codes,), means over the batch, in nats.
        """
        last = self._tensors[-1]
        features, kept = self._features(x)
        found = q_head_objective(
            features, last.weight, last.bias, codes.classes, codes.continuous, spec,
            weights=weights, counted=counted, impl=self._impl,
        )  # fmt: skip
        self._keep(x, kept, found.gradient, found.bias_gradient)
        return found.values
