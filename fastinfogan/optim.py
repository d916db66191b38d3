"""Adam in one launch for a whole network, with working copies of its weights in low precision.

    adam = Adam(model.parameters(), lr=2e-4, betas=(0.5, 0.999))

A drop-in for torch.optim.Adam: state_dict, schedulers and torch.amp.GradScaler are interchangeable.
A step never synchronises with the device, so it can be captured in a CUDA graph after a first one.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, overload

import torch
from torch import Tensor

from fastinfogan.errors import InputError
from fastinfogan_kernels.adam.adam import (
    GradScaling,
    Hyperparameters,
    MultiTensorAdam,
    update_native,
    update_reference,
)
from fastinfogan_kernels.adam.multi_tensor import KINDS, TensorGroup
from fastinfogan_kernels.runtime.launch import Chosen, Implementation, choose, is_recording
from fastinfogan_kernels.runtime.workspace import is_dense, same_memory_order

# Options of torch.optim.Adam's groups beside lr, betas and eps, without which its load_state_dict
# fails. The first change the arithmetic and must be off; the others choose torch's implementation.
_UNSUPPORTED = {"weight_decay": 0, "amsgrad": False, "maximize": False, "differentiable": False}
_IGNORED = {"foreach": None, "capturable": False, "fused": None, "decoupled_weight_decay": False}
_ALIGNMENT = 64


class Adam(torch.optim.Optimizer):
    """Adam (Kingma and Ba 2015), as torch.optim.Adam computes it.

    On CUDA tensors a parameter group is one launch: step counters, a learning rate in a tensor,
    found_inf and grad_scale are read on the device. On CPU tensors it is C++, and in fp64 plain
    torch. Parameters are not moved.

    A parameter may have a working copy: a bfloat16 or float16 tensor to which the same pass writes
    the rounded parameter, for a network that computes with the copies. The gradient is then the
    parameter's .grad, or if that is None the copy's; torch.amp.GradScaler sees only the former.

    Args:
        params: fp32 (or fp64) tensors, dense in memory, or groups of them; a group is on one
            device.
        lr: the learning rate; a number, or an fp32 tensor of one element, which a captured step
            reads at every replay.
        betas: decays of the mean of the gradients, and of the mean of their squares.
        eps: added to the root of the latter.
        working_copies: parameter -> its working copy, of its shape and strides.
        impl: "auto", "reference", "native" or "triton".

    Raises:
        InputError: a number is out of range; a parameter or a copy cannot be updated; an option of
            torch.optim.Adam is not supported.
    """

    # Read by torch.amp.GradScaler: step() handles grad_scale and found_inf itself.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        working_copies: Mapping[Tensor, Tensor] | None = None,
        impl: Implementation = "auto",
    ) -> None:
        self._impl: Implementation = impl
        self._working_copies: dict[Tensor, Tensor] = {}
        self._launchers: dict[tuple[int, torch.device], MultiTensorAdam] = {}
        self._skipped = 0
        defaults = {"lr": lr, "betas": betas, "eps": eps, **_UNSUPPORTED, **_IGNORED}
        super().__init__(params, defaults)
        for parameter, copy in (working_copies or {}).items():
            self.add_working_copy(parameter, copy)

    @property
    def skipped(self) -> int:
        """Steps skipped because a gradient scaler found an inf or NaN; synchronises."""
        return self._skipped + sum(each.skipped for each in self._launchers.values())

    @property
    def working_copies(self) -> dict[Tensor, Tensor]:
        """The working copy of each parameter that has one."""
        return dict(self._working_copies)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, as torch.optim.Optimizer does.

        Raises:
            InputError: see the class.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _check_group(group)
            for parameter in group["params"]:
                _check_parameter(parameter, group["params"][0])
        except InputError:
            self.param_groups.pop()
            raise

    def add_working_copy(self, parameter: Tensor, copy: Tensor) -> None:
        """Round a parameter to a tensor, now and after every step.

        Args:
            parameter: one of this optimizer's.
            copy: bfloat16 or float16, of the parameter's shape and strides.

        Raises:
            InputError: otherwise.
        """
        if not any(parameter is p for group in self.param_groups for p in group["params"]):
            raise InputError(
                f"a working copy was given for a tensor of shape {tuple(parameter.shape)} that is "
                "no parameter of this optimizer"
            )
        if (
            copy.dtype not in KINDS[1:]
            or copy.device != parameter.device
            or not same_memory_order(copy, parameter)
        ):
            raise InputError(
                "a working copy must be bfloat16 or float16 with its parameter's shape "
                f"{tuple(parameter.shape)} and strides {parameter.stride()} on {parameter.device}, "
                f"not {copy.dtype} of shape {tuple(copy.shape)} and strides {copy.stride()} on "
                f"{copy.device}"
            )
        self._working_copies[parameter] = copy
        with torch.no_grad():
            copy.copy_(parameter)

    @torch.no_grad()
    def refresh_working_copies(self) -> None:
        """Round all parameters to their working copies again, after something else changed them."""
        for parameter, copy in self._working_copies.items():
            copy.copy_(parameter)

    @torch.no_grad()
    def make_state(self) -> None:
        """Make every parameter's state now instead of at its first step with a gradient.

        For a checkpoint before the first step, and before a CUDA graph is captured.
        """
        for group in self.param_groups:
            self._init_state([p for p in group["params"] if not self.state.get(p)])

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    # torch.compiler.disable, which imports torch._dynamo when it is called and not here.
    @torch._disable_dynamo  # type: ignore[attr-defined]
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the parameters that have gradients.

        As torch's fused Adam, it reads the attributes that torch.amp.GradScaler sets: `found_inf`
        (if not 0, nothing is updated and `skipped` is incremented) and `grad_scale` (gradients are
        divided by it), both fp32 tensors of one element.

        Args:
            closure: computes the loss, with gradients.

        Returns:
            The closure's loss.

        Raises:
            InputError: a gradient cannot be used.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scaling = GradScaling(getattr(self, "found_inf", None), getattr(self, "grad_scale", None))
        count_skipped = True
        for number, group in enumerate(self.param_groups):
            found = [(p, self._gradient(p)) for p in group["params"]]
            updated = [(p, g) for p, g in found if g is not None]
            if updated:
                self._init_state([p for p, _ in updated if not self.state.get(p)])
                groups = [self._tensor_group(p, g) for p, g in updated]
                self._update(groups, number, scaling, count_skipped)
                count_skipped = False
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of parameters and working copies."""
        super().zero_grad(set_to_none)
        for copy in self._working_copies.values():
            if set_to_none:
                copy.grad = None
            elif copy.grad is not None:
                copy.grad.detach_().zero_()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of an Adam, this one's or torch's.

        Raises:
            InputError: its groups have weight_decay, amsgrad, maximize or differentiable set.
        """
        for group in state_dict["param_groups"]:
            _check_group(group)
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            self._init_state([p for p in group["params"] if self.state.get(p)])

    def __getstate__(self) -> dict[str, Any]:
        own = {
            "_impl": self._impl, "_working_copies": self._working_copies, "_skipped": self.skipped,
        }  # fmt: skip
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if not hasattr(self, "_launchers"):
            self._launchers = {}
        for group in self.param_groups:
            for key, value in (_UNSUPPORTED | _IGNORED).items():
                group.setdefault(key, value)

    def _gradient(self, parameter: Tensor) -> Tensor | None:
        copy = self._working_copies.get(parameter)
        gradients = [t.grad for t in (parameter, copy) if t is not None and t.grad is not None]
        if len(gradients) > 1:
            raise InputError(
                f"a parameter of shape {tuple(parameter.shape)} and its working copy both have a "
                "gradient; clear one"
            )
        return gradients[0] if gradients else None

    def _tensor_group(self, parameter: Tensor, gradient: Tensor) -> TensorGroup:
        if gradient.layout != torch.strided:
            raise InputError(f"gradients must be dense, not {gradient.layout}")
        if gradient.dtype not in KINDS and parameter.dtype != torch.float64:
            raise InputError(
                f"gradients must be float32, bfloat16 or float16, not {gradient.dtype}"
            )
        if not same_memory_order(gradient, parameter):
            gradient = torch.empty_like(parameter, dtype=gradient.dtype).copy_(gradient)
        state = self.state[parameter]
        return TensorGroup(
            parameter, gradient, state["exp_avg"], state["exp_avg_sq"], state["step"],
            self._working_copies.get(parameter),
        )  # fmt: skip

    def _init_state(self, parameters: list[Tensor]) -> None:
        """Put the moments of a group's parameters, zero or as they are, into one allocation."""
        if not parameters:
            return
        first = parameters[0]
        if first.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise InputError(
                "Adam's state would be made inside a CUDA graph, and again at every replay; "
                "make one step, or call make_state(), before capturing"
            )
        offsets = [0]
        for p in parameters:
            offsets.append(offsets[-1] + -(-p.numel() // _ALIGNMENT) * _ALIGNMENT)
        moments = torch.zeros((2, offsets[-1]), dtype=first.dtype, device=first.device)
        steps = torch.zeros(len(parameters), dtype=torch.float32, device=first.device)
        for p, offset, step in zip(parameters, offsets[:-1], steps, strict=True):
            exp_avg, exp_avg_sq = (
                row.as_strided(p.shape, p.stride(), row.storage_offset() + offset)
                for row in moments
            )
            state = {"step": step, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
            for name, value in self.state.get(p, {}).items():
                state[name].copy_(torch.as_tensor(value))
            self.state[p] = state

    def _update(
        self, groups: list[TensorGroup], number: int, scaling: GradScaling, count_skipped: bool
    ) -> None:
        first = groups[0].parameter
        device, param_group = first.device, self.param_groups[number]
        lr = param_group["lr"]
        if isinstance(lr, Tensor) and (device.type == "cpu" or lr.device != device):
            lr = lr.item()
        beta1, beta2 = param_group["betas"]
        hyper = Hyperparameters(lr, beta1, beta2, param_group["eps"])
        scaling = GradScaling(*(None if t is None else t.to(device) for t in scaling))
        backend = self._backend(first)
        if backend == "triton":
            if (number, device) not in self._launchers:
                self._launchers[number, device] = MultiTensorAdam(device)
            launcher = self._launchers[number, device]
            with torch.cuda.device_of(first):  # type: ignore[no-untyped-call]
                launcher.update(groups, hyper, scaling, count_skipped=count_skipped)
            return
        if scaling.found_inf is not None and scaling.found_inf.item() != 0:
            self._skipped += count_skipped
            return
        scale = 1.0 if scaling.grad_scale is None else float(scaling.grad_scale.item())
        (update_native if backend == "native" else update_reference)(groups, hyper, scale)

    def _backend(self, parameter: Tensor) -> Chosen:
        if parameter.device.type == "meta" and is_recording():
            return "triton"
        if parameter.dtype == torch.float64:
            if self._impl in ("native", "triton"):
                raise InputError(f"impl={self._impl!r} updates float32, not float64")
            return "reference"
        return choose(self._impl, parameter.device)


def _check_group(group: dict[str, Any]) -> None:
    """Check the options of a parameter group.

    Raises:
        InputError: one is out of range or not supported.
    """
    for option, off in _UNSUPPORTED.items():
        if group.get(option, off) not in (off, None):
            raise InputError(
                f"{option}={group[option]!r} in a group of parameters: this Adam has no {option}; "
                "use torch.optim.Adam"
            )
    lr = group["lr"]
    if isinstance(lr, Tensor):
        if lr.numel() != 1 or lr.dtype != torch.float32:
            raise InputError(
                f"lr must be a number or an fp32 tensor of one element, not {lr.dtype} of shape "
                f"{tuple(lr.shape)}"
            )
    elif not lr >= 0:
        raise InputError(f"lr must be >= 0, not {lr}")
    betas = tuple(group["betas"])
    if len(betas) != 2 or not all(isinstance(b, int | float) and 0 <= b < 1 for b in betas):
        raise InputError(f"betas must be two numbers in [0, 1), not {betas}")
    if not group["eps"] >= 0:
        raise InputError(f"eps must be >= 0, not {group['eps']}")


def _check_parameter(parameter: Tensor, first: Tensor) -> None:
    what = f"a parameter of shape {tuple(parameter.shape)}"
    if parameter.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"{what} is {parameter.dtype}; this Adam updates float32 (or float64): keep master "
            "weights as parameters, and low-precision tensors as their working copies"
        )
    if not is_dense(parameter):
        raise InputError(
            f"{what} has strides {parameter.stride()}, which leave gaps in memory or share it; "
            "make it contiguous"
        )
    if parameter.device != first.device or parameter.dtype != first.dtype:
        raise InputError(
            f"{what} is {parameter.dtype} on {parameter.device} and the first of its group "
            f"{first.dtype} on {first.device}; put them into separate groups"
        )
