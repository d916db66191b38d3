"""Adam in one launch for a whole network, with low-precision copies of its weights.

    adam = Adam(model.parameters(), lr=2e-4, betas=(0.5, 0.999))

A drop-in for torch.optim.Adam: state_dict, schedulers and torch.amp.GradScaler are interchangeable.
Nothing of a step waits for the device, so it can be captured into a CUDA graph after a first one.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, overload

import torch
from torch import Tensor

from fastinfogan.errors import InputError
from fastinfogan_kernels.adam.adam import OneLaunch, Rates, Scaling, update_native, update_reference
from fastinfogan_kernels.adam.multi_tensor import KINDS, Slot, is_dense, same_memory_order
from fastinfogan_kernels.runtime.backend import Chosen, Implementation, choose
from fastinfogan_kernels.runtime.launch import is_recording

# What torch.optim.Adam's groups hold beside lr, betas and eps: a state_dict that lacked one of them
# could not be loaded there. The first four would change the arithmetic, the others say how torch
# computes it.
_REFUSED = {"weight_decay": 0, "amsgrad": False, "maximize": False, "differentiable": False}
_CARRIED = {"foreach": None, "capturable": False, "fused": None, "decoupled_weight_decay": False}
_ALIGNMENT = 64


class Adam(torch.optim.Optimizer):
    """Adam (Kingma and Ba 2015), as torch.optim.Adam computes it.

    On CUDA tensors a group is one launch: step counters, a learning rate given as a tensor,
    found_inf and grad_scale are read on the device. On CPU tensors it is C++, and in fp64 plain
    torch. Parameters stay where they are.

    A parameter may have a copy: a bfloat16 or float16 tensor kept equal to the rounded parameter by
    the same pass, for a network that computes with the copies. Its gradient is then taken from the
    parameter's .grad, or if that is None from the copy's; torch.amp.GradScaler knows the former
    alone.

    Args:
        params: fp32 (or fp64) tensors, dense in memory, or groups of them; a group is on one
            device.
        lr: the learning rate; a number, or an fp32 tensor of one element, which a captured step
            reads anew at every replay.
        betas: decays of the mean of the gradients, and of the mean of their squares.
        eps: added to the root of the latter.
        copies: parameter -> its copy, of its shape and strides.
        impl: "auto", "reference", "native" or "triton".

    Raises:
        InputError: a number out of range; a parameter or a copy that cannot be updated; options of
            torch.optim.Adam that this one has not.
    """

    # Told to torch.amp.GradScaler: step() reads grad_scale and found_inf itself.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        copies: Mapping[Tensor, Tensor] | None = None,
        impl: Implementation = "auto",
    ) -> None:
        self._impl: Implementation = impl
        self._copies: dict[Tensor, Tensor] = {}
        self._launches: dict[tuple[int, torch.device], OneLaunch] = {}
        self._skipped = 0
        defaults = {"lr": lr, "betas": betas, "eps": eps, **_REFUSED, **_CARRIED}
        super().__init__(params, defaults)
        for parameter, copy in (copies or {}).items():
            self.keep_copy(parameter, copy)

    @property
    def skipped(self) -> int:
        """Steps skipped because a gradient scaler found an inf or NaN. Waits for the device."""
        return self._skipped + sum(each.skipped for each in self._launches.values())

    @property
    def copies(self) -> dict[Tensor, Tensor]:
        """Each copy that is kept, by its parameter."""
        return dict(self._copies)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch.optim.Optimizer; see the class for what a parameter may be.

        Raises:
            InputError: see the class.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _require_group(group)
            for parameter in group["params"]:
                _require_parameter(parameter, group["params"][0])
        except InputError:
            self.param_groups.pop()
            raise

    def keep_copy(self, parameter: Tensor, copy: Tensor) -> None:
        """Keep a tensor equal to a parameter, rounded; it is so at once.

        Args:
            parameter: one of this optimizer's.
            copy: bfloat16 or float16, of the parameter's shape and strides.

        Raises:
            InputError: neither is so.
        """
        if not any(parameter is p for group in self.param_groups for p in group["params"]):
            raise InputError(
                f"a copy was given for a tensor of shape {tuple(parameter.shape)} that is none of "
                "this optimizer's parameters"
            )
        if (
            copy.dtype not in KINDS[1:]
            or copy.device != parameter.device
            or not same_memory_order(copy, parameter)
        ):
            raise InputError(
                f"a copy is bfloat16 or float16 with its parameter's shape {tuple(parameter.shape)}"
                f" and strides {parameter.stride()} on {parameter.device}, not {copy.dtype} of "
                f"shape {tuple(copy.shape)} and strides {copy.stride()} on {copy.device}"
            )
        self._copies[parameter] = copy
        with torch.no_grad():
            copy.copy_(parameter)

    @torch.no_grad()
    def write_copies(self) -> None:
        """Round all parameters into their copies again, after something else changed them."""
        for parameter, copy in self._copies.items():
            copy.copy_(parameter)

    @torch.no_grad()
    def make_state(self) -> None:
        """Give every parameter its state now, as a first step gives it to those with gradients.

        For a checkpoint before the first step, and before a CUDA graph is captured.
        """
        for group in self.param_groups:
            self._seat(group["params"])

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    # torch.compiler.disable, which imports torch._dynamo when it is called and not here.
    @torch._disable_dynamo  # type: ignore[attr-defined]
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the parameters that have gradients.

        As torch's fused Adam, it honours attributes of its own by which torch.amp.GradScaler hands
        over `found_inf` (not 0: nothing is updated, `skipped` goes up) and `grad_scale` (gradients
        are divided by it), both fp32 tensors of one element.

        Args:
            closure: computes the loss anew, with gradients.

        Returns:
            The closure's loss.

        Raises:
            InputError: a gradient that cannot be used.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scaling = Scaling(getattr(self, "found_inf", None), getattr(self, "grad_scale", None))
        counted = True
        for number, group in enumerate(self.param_groups):
            found = [(p, self._gradient(p)) for p in group["params"]]
            updated = [(p, g) for p, g in found if g is not None]
            if updated:
                self._seat([p for p, _ in updated])
                slots = [self._slot(p, g) for p, g in updated]
                self._update(slots, number, scaling, counted)
                counted = False
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of parameters and copies, or make them zero."""
        super().zero_grad(set_to_none)
        for copy in self._copies.values():
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
            _require_group(group)
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            self._seat([p for p in group["params"] if self.state.get(p)], anew=True)

    def __getstate__(self) -> dict[str, Any]:
        kept = {"_impl": self._impl, "_copies": self._copies, "_skipped": self.skipped}
        return {**super().__getstate__(), **kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if not hasattr(self, "_launches"):
            self._launches = {}
        for group in self.param_groups:
            for key, value in (_REFUSED | _CARRIED).items():
                group.setdefault(key, value)

    def _gradient(self, parameter: Tensor) -> Tensor | None:
        copy = self._copies.get(parameter)
        gradients = [t.grad for t in (parameter, copy) if t is not None and t.grad is not None]
        if len(gradients) > 1:
            raise InputError(
                f"a parameter of shape {tuple(parameter.shape)} has a gradient, and its copy "
                "has one; leave one"
            )
        return gradients[0] if gradients else None

    def _slot(self, parameter: Tensor, gradient: Tensor | None) -> Slot:
        if gradient is not None:
            if gradient.layout != torch.strided:
                raise InputError(f"gradients are dense, not {gradient.layout}")
            if gradient.dtype not in KINDS and parameter.dtype != torch.float64:
                raise InputError(
                    f"gradients are float32, bfloat16 or float16, not {gradient.dtype}"
                )
            if not same_memory_order(gradient, parameter):
                gradient = torch.empty_like(parameter, dtype=gradient.dtype).copy_(gradient)
        state = self.state[parameter]
        return Slot(
            parameter,
            gradient,
            state["exp_avg"],
            state["exp_avg_sq"],
            state["step"],
            self._copies.get(parameter),
        )

    def _seat(self, parameters: list[Tensor], *, anew: bool = False) -> None:
        """Put the moments of those parameters that have none into one allocation.

        Args:
            parameters: of one group.
            anew: move the moments of those that have some, too.
        """
        parameters = [p for p in parameters if anew or not self.state.get(p)]
        if not parameters:
            return
        first = parameters[0]
        if first.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise InputError(
                "Adam's state would be made inside a CUDA graph, and made anew at every replay; "
                "make one step, or call make_state(), before capturing"
            )
        places = [0]
        for p in parameters:
            places.append(places[-1] + -(-p.numel() // _ALIGNMENT) * _ALIGNMENT)
        flat = torch.zeros((2, places[-1]), dtype=first.dtype, device=first.device)
        steps = torch.zeros(len(parameters), dtype=torch.float32, device=first.device)
        for i, p in enumerate(parameters):
            views = {
                name: flat[row].as_strided(
                    p.shape, p.stride(), flat[row].storage_offset() + places[i]
                )
                for row, name in enumerate(("exp_avg", "exp_avg_sq"))
            } | {"step": steps[i]}
            for name, value in self.state.get(p, {}).items():
                views[name].copy_(torch.as_tensor(value))
            self.state[p] = {name: views[name] for name in ("step", "exp_avg", "exp_avg_sq")}

    def _update(self, slots: list[Slot], number: int, scaling: Scaling, counted: bool) -> None:
        device = slots[0].parameter.device
        rates = _rates(self.param_groups[number], device)
        scaling = Scaling(*(None if t is None else t.to(device) for t in scaling))
        chosen = self._implementation(slots[0].parameter)
        if chosen == "triton":
            if (number, device) not in self._launches:
                self._launches[number, device] = OneLaunch(device)
            with torch.cuda.device_of(slots[0].parameter):  # type: ignore[no-untyped-call]
                self._launches[number, device].update(slots, rates, scaling, counted=counted)
            return
        if scaling.found_inf is not None and scaling.found_inf.item() != 0:
            self._skipped += counted
            return
        scale = 1.0 if scaling.grad_scale is None else float(scaling.grad_scale.item())
        (update_native if chosen == "native" else update_reference)(slots, rates, scale)

    def _implementation(self, parameter: Tensor) -> Chosen:
        if parameter.device.type == "meta" and is_recording():
            return "triton"
        if parameter.dtype == torch.float64:
            if self._impl in ("native", "triton"):
                raise InputError(f"impl={self._impl!r} updates float32, not float64")
            return "reference"
        return choose(self._impl, parameter.device)


def _rates(group: dict[str, Any], device: torch.device) -> Rates:
    lr = group["lr"]
    if isinstance(lr, Tensor) and (device.type == "cpu" or lr.device != device):
        lr = lr.item()
    beta1, beta2 = group["betas"]
    return Rates(lr, beta1, beta2, group["eps"])


def _require_group(group: dict[str, Any]) -> None:
    """Check a group's numbers.

    Raises:
        InputError: one is out of range, or one of torch.optim.Adam's that this Adam has not.
    """
    for option, off in _REFUSED.items():
        if group.get(option, off) not in (off, None):
            raise InputError(
                f"{option}={group[option]!r} in a group of parameters: this Adam has no {option}; "
                "use torch.optim.Adam"
            )
    lr = group["lr"]
    if isinstance(lr, Tensor):
        if lr.numel() != 1 or lr.dtype != torch.float32:
            raise InputError(
                f"lr is a number or an fp32 tensor of one element, not {lr.dtype} of shape "
                f"{tuple(lr.shape)}"
            )
    elif not lr >= 0:
        raise InputError(f"lr must be 0 or more, not {lr}")
    betas = tuple(group["betas"])
    if len(betas) != 2 or not all(isinstance(b, int | float) and 0 <= b < 1 for b in betas):
        raise InputError(f"betas are two numbers of 0 or more and below 1, not {betas}")
    if not group["eps"] >= 0:
        raise InputError(f"eps must be 0 or more, not {group['eps']}")


def _require_parameter(parameter: Tensor, first: Tensor) -> None:
    what = f"a parameter of shape {tuple(parameter.shape)}"
    if parameter.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"{what} is {parameter.dtype}; this Adam updates float32 (or float64): keep those as "
            "parameters, and the narrow tensors as their copies"
        )
    if not is_dense(parameter):
        raise InputError(
            f"{what} has strides {parameter.stride()}, between which memory is left out or shared; "
            "make it contiguous"
        )
    if parameter.device != first.device or parameter.dtype != first.dtype:
        raise InputError(
            f"{what} is {parameter.dtype} on {parameter.device} and its group's first "
            f"{first.dtype} on {first.device}; give each kind a group of its own"
        )
