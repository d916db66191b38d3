"""The operations that are no chains, each compared with its definition."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from bench.gpu_report.judge import judge, same_bits
from bench.gpu_report.stage import FailedError
from bench.gpu_report.workload import normal
from fastinfogan.experiments import Experiment
from fastinfogan.optim import Adam
from fastinfogan_kernels.adam.adam import OVERFLOWED, OneLaunch
from fastinfogan_kernels.adam.multi_tensor import CHUNK, Slot
from fastinfogan_kernels.conv_block.deferred import Deferred
from fastinfogan_kernels.inputs.draw import draw_codes
from fastinfogan_kernels.inputs.real_images import real_images
from fastinfogan_kernels.latents import Categorical, Continuous, LatentSpec, Noise
from fastinfogan_kernels.objective import metrics
from fastinfogan_kernels.objective.adversarial import losses_with_gradient
from fastinfogan_kernels.objective.heads import d_head_objective, q_head_objective
from fastinfogan_kernels.objective.likelihood import REDUCTIONS, likelihood_with_gradient
from fastinfogan_kernels.philox import Stream

Check = Callable[[torch.device], dict[str, Any]]
BETAS = (0.5, 0.999)
MIXED = LatentSpec(
    Noise(7),
    (
        Categorical(3),
        Categorical(70),
        Continuous(),
        Continuous("fixed"),
        Continuous("clipped", (0.5, 2.0)),
    ),
)


def checks(
    experiments: Sequence[Experiment], dtypes: Sequence[torch.dtype]
) -> Iterator[tuple[str, Check]]:
    """All of them, by name; each takes the device and raises `FailedError`."""
    specs = {"mixed codes": (MIXED, 70, 37)}
    specs |= {f"{e.name}": (e.latents, 128, e.batch_size) for e in experiments}
    for dtype in dtypes:
        of = str(dtype).removeprefix("torch.")
        for name, (spec, depth, rows) in specs.items():
            yield f"Q head's objective, {name}, {of}", _q_head(spec, depth, rows, dtype)
            yield f"likelihood, {name}, {of}", _likelihood(spec, rows, dtype)
            yield f"noise and codes, {name}, {of}", _draw(spec, rows, dtype)
        yield f"D head's objective, {of}", _d_head(1024, 2 * 33, dtype)
        yield f"D's losses, {of}", _losses(dtype)
        for augmentation in ("none", "affine"):
            yield f"real images, {augmentation}, {of}", _real_images(augmentation, dtype)
        yield f"Adam, gradients in {of}", _adam(dtype)
        yield f"overflow in {of}", _overflow(dtype)
    yield "measures", _measures


def _drawn(spec: LatentSpec, rows: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(rows)
    classes = torch.empty(rows, len(spec.categorical), dtype=torch.int64)
    for i, code in enumerate(spec.categorical):
        classes[:, i] = torch.randint(code.classes, (rows,), generator=source)
    return classes, torch.rand(rows, len(spec.continuous), generator=source) * 2 - 1


def _q_head(spec: LatentSpec, depth: int, rows: int, dtype: torch.dtype) -> Check:
    def check(device: torch.device) -> dict[str, Any]:
        classes, continuous = (t.to(device) for t in _drawn(spec, rows))
        width = spec.output_width
        y = normal((rows, depth), 1).to(device, dtype)
        params = normal((1, 3, depth), 2).to(device)
        weight = (normal((width, depth), 3) / depth**0.5).to(device, dtype)
        bias = 0.1 * normal((width,), 4).to(device)

        def run(computed: torch.dtype, impl: Any) -> dict[str, Tensor]:
            wide = torch.promote_types(computed, torch.float32)
            found = q_head_objective(
                Deferred(y.to(computed), params.to(wide), 0.1), weight.to(computed), bias.to(wide),
                classes, continuous.to(wide), spec,
                weights=[0.5 + i for i in range(len(spec.codes))], with_output=True, impl=impl,
            )  # fmt: skip
            return {k: v for k, v in found._asdict().items() if v is not None}

        return judge(
            run(dtype, "triton"), run(dtype, "reference"), run(torch.float64, "reference"), dtype
        )

    return check


def _d_head(depth: int, rows: int, dtype: torch.dtype) -> Check:
    def check(device: torch.device) -> dict[str, Any]:
        y = normal((rows, depth), 1).to(device, dtype)
        params = normal((2, 3, depth), 2).to(device)
        weight = (normal((1, depth), 3) / depth**0.5).to(device, dtype)
        bias = 0.1 * normal((1,), 4).to(device)

        def run(computed: torch.dtype, impl: Any) -> dict[str, Tensor]:
            wide = torch.promote_types(computed, torch.float32)
            found = d_head_objective(
                Deferred(y.to(computed), params.to(wide), 0.1), weight.to(computed), bias.to(wide),
                (1, 0), 3.0, impl=impl,
            )  # fmt: skip
            return dict(found._asdict())

        return judge(
            run(dtype, "triton"), run(dtype, "reference"), run(torch.float64, "reference"), dtype
        )

    return check


def _likelihood(spec: LatentSpec, rows: int, dtype: torch.dtype) -> Check:
    def check(device: torch.device) -> dict[str, Any]:
        classes, continuous = (t.to(device) for t in _drawn(spec, rows))
        output = (1.5 * normal((rows, spec.output_width), 5)).to(device, dtype)

        def run(computed: torch.dtype, impl: Any) -> dict[str, Tensor]:
            found = {}
            for reduction in REDUCTIONS:
                values, gradient = likelihood_with_gradient(
                    output.to(computed), classes,
                    continuous.to(torch.promote_types(computed, torch.float32)), spec,
                    weights=[0.5 + i for i in range(len(spec.codes))], reduction=reduction,
                    impl=impl,
                )  # fmt: skip
                found |= {f"{reduction} values": values, f"{reduction} gradient": gradient}
            return found

        return judge(
            run(dtype, "triton"), run(dtype, "reference"), run(torch.float64, "reference"), dtype
        )

    return check


def _losses(dtype: torch.dtype) -> Check:
    def check(device: torch.device) -> dict[str, Any]:
        logits = (5 * normal((2 * 301,), 6)).to(device, dtype)

        def run(computed: torch.dtype, impl: Any) -> dict[str, Tensor]:
            losses, gradient = losses_with_gradient(logits.to(computed), (1, 0), 2.0, impl=impl)
            return {"losses": losses, "gradient": gradient}

        return judge(
            run(dtype, "triton"), run(dtype, "reference"), run(torch.float64, "reference"), dtype
        )

    return check


def _draw(spec: LatentSpec, rows: int, dtype: torch.dtype) -> Check:
    def check(device: torch.device) -> dict[str, Any]:
        counter = torch.tensor(12345, device=device)
        ours = draw_codes(
            spec, 2**40 + 1, counter, Stream.D_STEP, rows, first_row=3, streams=2, device=device,
            dtype=dtype, impl="triton",
        )  # fmt: skip
        plain = draw_codes(
            spec, 2**40 + 1, 12345, Stream.D_STEP, rows, first_row=3, streams=2, impl="reference"
        )
        inputs = plain.generator_input
        if device.type == "cpu" and dtype == torch.bfloat16:  # the interpreter truncates
            inputs = (inputs.view(torch.int32) & -(1 << 16)).view(torch.float32)
        expected = {
            "G's input": inputs.to(dtype),
            "classes": plain.classes,
            "continuous": plain.continuous,
        }
        found = {
            "G's input": ours.generator_input.cpu(),
            "classes": ours.classes.cpu(),
            "continuous": ours.continuous.cpu(),
        }
        return same_bits(found, expected, "drawn by the kernel and by NumPy")

    return check


def _real_images(augmentation: Any, dtype: torch.dtype) -> Check:
    def check(device: torch.device) -> dict[str, Any]:
        source = torch.Generator().manual_seed(8)
        images = torch.randint(0, 256, (41, 20, 33, 3), dtype=torch.uint8, generator=source)
        images = images.to(device)

        def run(computed: torch.dtype, impl: Any) -> dict[str, Tensor]:
            out = torch.full((7, *images.shape[1:]), -7.0, dtype=computed, device=device)
            step = torch.tensor(9, device=device) if impl == "triton" else 9
            real_images(
                images, 5, step, out, image_range=(-1.0, 1.0), augmentation=augmentation,
                first_row=2, all_rows=16, impl=impl,
            )  # fmt: skip
            return {"images": out}

        ours, theirs = run(dtype, "triton"), run(dtype, "reference")
        truth = run(torch.float64, "reference")
        if augmentation == "none":
            return judge(ours, theirs, truth, dtype)
        # Cosines of fp32 differ by a rounding, which moves an image by 1e-6 of a pixel.
        most = (ours["images"].double() - truth["images"]).abs().max().item()
        allowed = 1e-3 if dtype == torch.float32 else 1e-2
        if not most <= allowed:
            raise FailedError(f"an image is off by {most:.2e} of 2", {"error": most})
        return {"error": most}

    return check


def _parameters(dtype: torch.dtype, device: torch.device) -> list[Parameter]:
    """Whole chunks, a part of one, channels_last memory, an odd address, a scalar, and nothing."""
    drawn = [
        normal((2, CHUNK), 1),
        normal((3, 700), 2),
        normal((5, 3, 4, 4), 3).to(memory_format=torch.channels_last),
        normal((), 4),
        normal((0, 3), 5),
    ]
    found = [Parameter(0.1 * t.to(device, dtype)) for t in drawn]
    odd = torch.empty(CHUNK + 8, dtype=dtype, device=device)[1:]  # no address of 16 bytes
    odd.copy_(0.1 * normal((CHUNK + 7,), 6))
    return [*found, Parameter(odd)]


def _adam(dtype: torch.dtype) -> Check:
    """Twenty updates, by gradients of a format; the copies are the weights, rounded."""

    def check(device: torch.device) -> dict[str, Any]:
        sides = {
            "ours": _parameters(torch.float32, device),
            "theirs": _parameters(torch.float32, device),
            "truth": _parameters(torch.float64, device),
        }
        narrow = dtype != torch.float32
        copies = {p: torch.empty_like(p, dtype=dtype) for p in sides["ours"]} if narrow else {}
        adam = Adam(sides["ours"], 1e-2, BETAS, copies=copies, impl="triton")
        plain = [torch.optim.Adam(sides[side], 1e-2, BETAS) for side in ("theirs", "truth")]
        for step in range(20):
            for number, (ours, theirs, true) in enumerate(zip(*sides.values(), strict=True)):
                g = normal(tuple(ours.shape), 100 * step + number).to(device, dtype)
                copies.get(ours, ours).grad = g.to(dtype if narrow else ours.dtype)
                theirs.grad, true.grad = g.float(), g.double()
            adam.step()
            for optimizer in plain:
                optimizer.step()
        named = {
            side: {f"parameter {i}": p.detach() for i, p in enumerate(of)}
            for side, of in sides.items()
        }
        found = judge(named["ours"], named["theirs"], named["truth"], torch.float32)
        truncated = device.type == "cpu" and dtype == torch.bfloat16  # by the interpreter
        if copies and not truncated:
            rounded = {str(i): p.detach().to(dtype) for i, p in enumerate(sides["ours"])}
            kept = {str(i): copies[p].detach() for i, p in enumerate(sides["ours"])}
            same_bits(kept, rounded, "a copy and its weight, rounded")
        return found

    return check


def _overflow(dtype: torch.dtype) -> Check:
    """In the last element of the last tensor, behind whole chunks; rows counted before stay."""

    def check(device: torch.device) -> dict[str, Any]:
        for bad in (None, float("nan"), float("inf"), -float("inf")):
            slots = []
            for number, size in enumerate((CHUNK + 3, 7, 2 * CHUNK + 1)):
                p = normal((size,), number).to(device)
                gradient = normal((size,), 9 + number).to(device, dtype)
                step = torch.zeros((), device=device)
                slots.append(Slot(p, gradient, p.clone(), p.clone(), step))
            last = slots[-1].gradient
            assert last is not None
            if bad is not None:
                last[-1] = bad
            problems = torch.tensor([2], dtype=torch.int32, device=device)
            OneLaunch(device).find_overflow(slots, problems)
            expected = 2 if bad is None else 2 | OVERFLOWED
            if problems.item() != expected:
                raise FailedError(f"{bad}: {problems.item()} is told, not {expected}", {})
        return {}

    return check


def _measures(device: torch.device) -> dict[str, Any]:
    """What an iteration measured, added up by one program and by torch."""
    for codes in (1, 3, 17):
        for problems in (0, 5):
            found = []
            for where, by_triton in ((device, True), (torch.device("cpu"), False)):
                d, g, values, entropies, sums = (
                    normal((n,), i).to(where) for i, n in enumerate((2, 1, codes, codes, 2 + codes))
                )
                tally = torch.tensor([7, 2, 1], dtype=torch.int32, device=where)
                wrong = torch.tensor([problems], dtype=torch.int32, device=where)
                counter = torch.tensor(2**40, device=where)
                metrics.accumulate(
                    d, g, values, entropies, wrong, sums, tally, None, counter, by_triton=by_triton
                )
                found.append((sums.cpu(), tally.tolist(), counter.item(), wrong.item()))
            (ours, *counted), (theirs, *expected) = found
            if counted != expected or not torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5):
                raise FailedError(f"{codes} codes: {counted}, torch has {expected}", {})
    return {}
