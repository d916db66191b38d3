"""A network's way forward and back, written out: no autograd, and only the gradients wanted."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from fastinfogan.kernels import aten_chain, triton_chain
from fastinfogan.kernels.source import Source
from fastinfogan.nn import Chain, statistics_frozen
from fastinfogan.nn.run import resolve


class Pass:
    """One network on batches of one shape, by batch statistics; traceable and capturable.

    Args:
        network: in training mode; its tensors must stay where they are.
        shape: of an input, (C, H, W) or (features,).
        batch: inputs.
        groups: equal parts of the batch with statistics of their own.
        dtype: of the maps.
        trained: whether its parameters have gradients and its running statistics move.

    Attributes:
        gradients: of the trained parameters, in the network's order, of the last way back.
        out: shape of an output, (C, H, W) or (features,).
    """

    def __init__(
        self,
        network: Chain,
        shape: tuple[int, ...],
        batch: int,
        *,
        groups: int = 1,
        dtype: torch.dtype,
        trained: bool,
    ) -> None:
        with nullcontext() if trained else statistics_frozen(network):
            stages = resolve(network.stages(), shape, batch, groups)
        self.out = stages[-1].out
        self._layers = [stage.layer for stage in stages]
        self._tensors = [stage.tensors for stage in stages]
        device = self._tensors[0].weight.device
        # Tensors without storage are for recording the launches.
        self._how: Any = aten_chain if device.type == "cpu" else triton_chain
        self._source = Source(dtype)
        self._groups = groups
        self._wanted = [
            [trained and isinstance(t, Parameter) and t.requires_grad for t in layer]
            for layer in self._tensors
        ]
        norms = [stage.norm for stage in stages if trained and stage.norm is not None]
        self._counters = [n.num_batches_tracked for n in norms if n.num_batches_tracked is not None]
        self.gradients: list[Tensor] = []
        self._kept: tuple[Tensor, list[Tensor | None]] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Compute the network.

        Args:
            x: maps (batch, height, width, channels), contiguous; a row of features is a 1x1 map.

        Returns:
            Its last block's maps.
        """
        for counter in self._counters:
            counter += self._groups
        out: Tensor
        out, kept = self._how.forward(x, self._source, self._layers, self._tensors, self._groups)
        self._kept = (x, kept)
        return out

    def backward(self, dout: Tensor) -> Tensor:
        """The gradient of the last forward's input; the parameters' are left in `gradients`.

        Args:
            dout: of its result, of the same shape and dtype.
        """
        dx = self._backward(dout, input_gradient=True)
        assert dx is not None
        return dx

    def backward_to_weights(self, dout: Tensor) -> None:
        """As `backward`, for a network whose input needs no gradient."""
        self._backward(dout, input_gradient=False)

    def _backward(self, dout: Tensor, *, input_gradient: bool) -> Tensor | None:
        assert self._kept is not None, "backward follows forward"
        (x, kept), self._kept = self._kept, None
        dx: Tensor | None
        dx, gradients = self._how.backward(
            x, self._source, self._layers, self._tensors, self._groups, kept, dout, self._wanted,
            input_gradient=input_gradient,
        )  # fmt: skip
        self.gradients = [g for g in gradients if g is not None]
        return dx
