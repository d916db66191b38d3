"""Single operations at the experiments' shapes: codes, images and Adam here.

`objective` holds likelihood and heads, `layers` products and norms. What a device does not have as
a separate operation is not planned: on a GPU batch norm and activation are part of the products.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from bench.accuracy import check_accuracy, check_same_bits
from bench.baselines import BEST, EAGER
from bench.baselines import ops as baselines
from bench.cases import BATCH, SEED, Case, Planned, Setting, plan
from bench.cases.layers import planned_layers
from bench.cases.objective import d_head, likelihood, q_head
from bench.cases.shapes import chosen_precisions
from bench.timing.clock import Run
from fastinfogan import experiments
from fastinfogan.engine.config import ComputedIn
from fastinfogan.experiments import Experiment
from fastinfogan.networks import InfoGAN
from fastinfogan.optim import Adam
from fastinfogan_kernels import philox
from fastinfogan_kernels.inputs.draw import draw_codes, empty_codes
from fastinfogan_kernels.inputs.real_images import Augmentation, affine_matrices, real_images
from fastinfogan_kernels.philox import Stream
from fastinfogan_kernels.runtime.launch import nbytes

IMAGES = 4096


def planned(
    device: torch.device,
    names: Iterable[str] | None = None,
    precisions: Sequence[ComputedIn] | None = None,
    batch: int | None = None,
) -> list[Planned]:
    """Plan all operations, each shape once.

    Args:
        device: where they will run.
        names: of experiments; None for all.
        precisions: of 16 bits and fp32; None for the device's own, "auto" and fp32.
        batch: images in a step; None for 128, or what a CPU can do of it in the heavy layers.
    """
    chosen = list(experiments.EXPERIMENTS if names is None else names)
    found = chosen_precisions(device) if precisions is None else list(precisions)
    plans: list[Planned] = []
    for name in chosen:
        # Unless asked for, fp32 is left to mnist: the same programs on twice the bytes.
        of_it = found if precisions or name == "mnist" else found[:1]
        plans += _of_experiment(experiments.get(name), of_it, batch or BATCH)
    return plans + planned_layers(device, chosen, found, batch)


def _of_experiment(e: Experiment, found: Sequence[ComputedIn], batch: int) -> Iterator[Planned]:
    makers: dict[str, Callable[[Setting], Case]] = {
        "likelihood": likelihood, "q head": q_head, "d head": d_head, "codes": _codes,
        "adam": _adam, "real images": _images,
    }  # fmt: skip
    if e.name == "mnist":
        makers["real images, augmented"] = partial(_images, augmentation="affine")
    for precision in found:
        for what, make in makers.items():
            if not what.startswith("real images") or precision == found[0]:
                name = f"{what}, {e.name}, {precision}"
                yield plan(make, "ops", name, e, precision, batch, short=e.name == "mnist")


def _codes(at: Setting) -> Case:
    """Compare with torch's own generator, whose numbers are others; check by the definition."""
    spec = at.experiment.latents
    counter = torch.zeros((), dtype=torch.int64, device=at.device)
    out = empty_codes(spec, at.batch, at.device, at.dtype)

    def run() -> None:
        draw_codes(
            spec, SEED, counter, Stream.D_STEP, at.batch, device=at.device, dtype=at.dtype, out=out
        )

    def check() -> None:
        run()
        drawn = spec.draw(SEED, 0, Stream.D_STEP, at.batch)
        actual = {"rows": out.generator_input, "classes": out.classes, "continuous": out.continuous}
        arrays = (spec.generator_input(drawn), drawn.classes, drawn.continuous)
        exact = {name: torch.from_numpy(a) for name, a in zip(actual, arrays, strict=True)}
        rounded = {**exact, "rows": exact["rows"].to(at.dtype)}
        check_accuracy(actual, rounded, exact, at.dtype)

    made = at.with_compiled(
        lambda f: lambda: f(spec, at.batch, at.device, at.dtype), baselines.draw_codes
    )
    return at.case(run, check=check, bytes=nbytes(*vars(out).values()), **made)


def _images(at: Setting, augmentation: Augmentation = "none") -> Case:
    """Gather and scale a batch of a resident set; the baseline draws by torch's generator."""
    e, batch, device = at.experiment, at.batch, at.device
    shape = (e.height, e.width, e.channels)
    source = torch.Generator().manual_seed(SEED)
    images = torch.randint(256, (IMAGES, *shape), generator=source, dtype=torch.uint8).to(device)
    out = torch.empty((batch, *shape), dtype=at.dtype, device=device)
    counter = torch.zeros((), dtype=torch.int64, device=device)
    affine = augmentation == "affine"

    def run() -> None:
        real_images(
            images, SEED, counter, out, image_range=e.image_range, augmentation=augmentation
        )

    def composed() -> Tensor:
        index = torch.randint(IMAGES, (batch,), device=device)
        found = baselines.scaled(images, index, e.image_range).permute(0, 3, 1, 2)
        if affine:
            found = baselines.moved(found, baselines.random_matrices(batch, device))
        return found.to(at.dtype, memory_format=torch.channels_last)

    def by_definition(of: torch.dtype) -> dict[str, Tensor]:
        index = torch.from_numpy(philox.shuffled_indices(SEED, 0, batch, IMAGES)).to(device)
        found = images[index].permute(0, 3, 1, 2).to(of) / 255
        if affine:
            matrices = affine_matrices(SEED, 0, batch, e.height, e.width)
            found = baselines.moved(found, torch.from_numpy(np.asarray(matrices)).to(device, of))
        low, high = e.image_range
        return {"images": (found * (high - low) + low).permute(0, 2, 3, 1)}

    def check() -> None:
        run()
        expected = {name: t.to(at.dtype) for name, t in by_definition(torch.float32).items()}
        check_accuracy({"images": out}, expected, by_definition(torch.float64), at.dtype)

    made = at.with_compiled(lambda f: f, composed)
    return at.case(run, check=check, bytes=nbytes(images[:batch], out), **made)


def _adam(at: Setting) -> Case:
    """Update all networks; gradients as these leave them: baselines cast them, and weights."""
    e, dtype, device = at.experiment, at.dtype, at.device
    with torch.device("meta"):
        shapes = [p.shape for p in InfoGAN(e).parameters() if p.requires_grad]
    start = [at.randn(*shape, dtype=torch.float32) * 0.02 for shape in shapes]
    gradients = [
        (at.randn(*shape, dtype=torch.float32, seed=2) * 1e-3).to(
            dtype if len(shape) > 1 else torch.float32
        )
        for shape in shapes
    ]
    hyper = (e.learning_rate_g, (e.beta1, e.beta2), e.epsilon)
    rounded = dtype != torch.float32

    def parameters(of: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
        return [torch.nn.Parameter(p.to(of).clone()) for p in start]

    updated = parameters()
    copies = {p: p.detach().to(dtype) for p in updated if p.dim() > 1 and rounded}
    adam = Adam(updated, *hyper, working_copies=copies)

    def run() -> None:
        for p, g in zip(updated, gradients, strict=True):
            copies.get(p, p).grad = g
        adam.step()

    def baseline(params: list[torch.nn.Parameter], *, fused: bool) -> Run:
        on_gpu = device.type == "cuda"
        optimizer = torch.optim.Adam(params, *hyper, fused=fused, capturable=on_gpu)
        pairs = [(p, torch.empty_like(p, dtype=dtype)) for p in params if p.dim() > 1 and rounded]

        @torch.no_grad()
        def run() -> None:
            for p, g in zip(params, gradients, strict=True):
                p.grad = g.to(p.dtype)
            optimizer.step()
            if pairs:
                torch._foreach_copy_([copy for _, copy in pairs], [p for p, _ in pairs])

        return run

    def check() -> None:
        truth, expected = parameters(torch.float64), parameters()
        for each in (run, baseline(truth, fused=True), baseline(expected, fused=True)):
            each()
            each()
        actual, by_torch, true = (
            {str(i): p.detach() for i, p in enumerate(params)}
            for params in (updated, expected, truth)
        )
        check_accuracy(actual, by_torch, true, torch.float32)
        check_same_bits(
            {str(i): copies[p] for i, p in enumerate(updated) if p in copies},
            {str(i): p.detach().to(dtype) for i, p in enumerate(updated) if p in copies},
            "working copies",
        )

    values = sum(p.numel() for p in updated)
    others = {name: baseline(parameters(), fused=name == BEST) for name in (EAGER, BEST)}
    size = 6 * 4 * values + nbytes(*gradients, *copies.values())
    return at.case(run, others, check, bytes=size, more={"values": values})
