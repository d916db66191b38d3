"""Single operations at the experiments' shapes: codes, images and Adam here.

`objective` holds likelihood, losses and heads, `products` and `norms` the layers' own. What a
device does not have as an operation of its own is not planned there: on a GPU batch norm's
statistics and its activation are formed in products.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from bench.accuracy import check_accuracy, check_same_bits
from bench.baselines import BEST, EAGER
from bench.baselines import ops as peers
from bench.cases import Case, Planned
from bench.cases.inputs import BATCH, SEED, randn, with_compiled
from bench.cases.norms import planned_norms
from bench.cases.objective import MAKERS, planned_losses
from bench.cases.products import planned_products
from bench.cases.shapes import chosen_precisions
from bench.timing.clock import Run
from fastinfogan import experiments
from fastinfogan.engine.precision import PRECISIONS, ComputedIn
from fastinfogan.experiments import Experiment
from fastinfogan.networks import InfoGAN
from fastinfogan.optim import Adam
from fastinfogan_kernels import shuffle
from fastinfogan_kernels.inputs import augment
from fastinfogan_kernels.inputs.draw import draw_codes, empty_codes
from fastinfogan_kernels.inputs.real_images import Augmentation, real_images
from fastinfogan_kernels.philox import Stream
from fastinfogan_kernels.runtime.launch import nbytes

IMAGES = 4096
SHORT = ("mnist",)
"""Whose operations are in the short set."""


def planned(
    device: torch.device,
    names: Iterable[str] | None = None,
    precisions: Sequence[ComputedIn] | None = None,
    batch: int | None = None,
) -> list[Planned]:
    """All operations, each shape once.

    Args:
        device: where they will run.
        names: of experiments; None for all.
        precisions: of 16 bits and fp32; None for the device's own, "auto" and fp32.
        batch: images in a step; None for 128, or what a CPU can do of it in the heavy layers.
    """
    chosen = list(experiments.BASES if names is None else names)
    found = chosen_precisions(device) if precisions is None else list(precisions)
    plans: list[Planned] = []
    for name in chosen:
        # Unless asked for, fp32 is left to mnist: the same programs on twice the bytes.
        of_it = found if precisions or name == "mnist" else found[:1]
        plans += _of_experiment(experiments.get(name), of_it, batch or BATCH)
    plans += planned_losses(found, batch or BATCH)
    plans += planned_norms(device, chosen, found, batch)
    plans += planned_products(device, chosen, found, batch)
    return plans


def _of_experiment(e: Experiment, found: Sequence[ComputedIn], batch: int) -> Iterator[Planned]:
    short = e.name in SHORT
    makers: dict[str, Callable[..., Case]] = {**MAKERS, "codes": _codes, "adam": _adam}
    for precision in found:
        for what, make in makers.items():
            name = f"{what}, {e.name}, {precision}"
            yield Planned("ops", name, partial(make, name, e, precision, batch), short)
    ways: list[Augmentation] = ["none", "affine"] if e.name == "mnist" else ["none"]
    for way in ways:
        what = "real images" if way == "none" else "real images, augmented"
        name = f"{what}, {e.name}, {found[0]}"
        yield Planned("ops", name, partial(_images, name, e, found[0], batch, way), short)


def _codes(
    name: str, e: Experiment, precision: ComputedIn, batch: int, device: torch.device
) -> Case:
    """Against torch's own generator, whose numbers are others; checked by the definition."""
    spec, dtype = e.latents, PRECISIONS[precision].computed
    counter = torch.zeros((), dtype=torch.int64, device=device)
    out = empty_codes(spec, batch, device, dtype)

    def ours() -> None:
        draw_codes(spec, SEED, counter, Stream.D_STEP, batch, device=device, dtype=dtype, out=out)

    def check() -> None:
        ours()
        drawn = spec.draw(SEED, 0, Stream.D_STEP, batch)
        exact = {
            "rows": torch.from_numpy(spec.generator_input(drawn)),
            "classes": torch.from_numpy(drawn.classes),
            "continuous": torch.from_numpy(drawn.continuous),
        }
        exact = {key: t for key, t in exact.items() if t.numel()}
        mine = {"rows": out.generator_input, "classes": out.classes, "continuous": out.continuous}
        rounded = {**exact, "rows": exact["rows"].to(dtype)}
        check_accuracy({k: mine[k] for k in exact}, rounded, exact, dtype)

    others, more = with_compiled(
        device, lambda f: lambda: f(spec, batch, device, dtype), peers.draw_codes
    )
    return Case(
        "ops", name, ours, others, check, e.name, precision, batch,
        bytes=nbytes(out.generator_input, out.classes, out.continuous), more=more,
    )  # fmt: skip


def _images(
    name: str,
    e: Experiment,
    precision: ComputedIn,
    batch: int,
    way: Augmentation,
    device: torch.device,
) -> Case:
    """A batch gathered from a resident set and scaled; the peer's choice is torch's generator's."""
    dtype, shape = PRECISIONS[precision].computed, (e.height, e.width, e.channels)
    source = torch.Generator().manual_seed(SEED)
    images = torch.randint(256, (IMAGES, *shape), generator=source, dtype=torch.uint8).to(device)
    out = torch.empty((batch, *shape), dtype=dtype, device=device)
    counter = torch.zeros((), dtype=torch.int64, device=device)

    def ours() -> None:
        real_images(
            images, SEED, counter, out, image_range=e.image_range, augmentation=way
        )  # fmt: skip

    def composed() -> Tensor:
        index = torch.randint(IMAGES, (batch,), device=device)
        found = peers.scaled(images, index, e.image_range).permute(0, 3, 1, 2)
        if way == "affine":
            found = peers.moved(found, peers.random_matrices(batch, device))
        return found.to(dtype, memory_format=torch.channels_last)

    def by_definition(of: torch.dtype) -> dict[str, Tensor]:
        index = torch.from_numpy(shuffle.indices(SEED, 0, batch, IMAGES)).to(device)
        found = images[index].permute(0, 3, 1, 2).to(of) / 255
        if way == "affine":
            matrices = augment.affine_matrices(SEED, 0, batch, e.height, e.width)
            found = peers.moved(found, torch.from_numpy(np.asarray(matrices)).to(device, of))
        low, high = e.image_range
        return {"images": (found * (high - low) + low).permute(0, 2, 3, 1)}

    def check() -> None:
        ours()
        exact = by_definition(torch.float64)
        peer = {"images": by_definition(torch.float32)["images"].to(dtype)}
        check_accuracy({"images": out}, peer, exact, dtype)

    others, more = with_compiled(device, lambda f: f, composed)
    return Case(
        "ops", name, ours, others, check, e.name, precision, batch,
        bytes=nbytes(images[:batch], out), more=more,
    )  # fmt: skip


def _adam(
    name: str, e: Experiment, precision: ComputedIn, batch: int, device: torch.device
) -> Case:
    """Of all networks; gradients as the networks leave them: peers cast them, and the weights."""
    dtype = PRECISIONS[precision].computed
    with torch.device("meta"):
        shapes = [p.shape for p in InfoGAN(e).parameters() if p.requires_grad]
    start = [randn(*shape, device=device, dtype=torch.float32) * 0.02 for shape in shapes]
    narrow = [
        (randn(*shape, device=device, dtype=torch.float32, seed=2) * 1e-3).to(
            dtype if len(shape) > 1 else torch.float32
        )
        for shape in shapes
    ]
    betas = (e.beta1, e.beta2)

    def parameters(of: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
        return [torch.nn.Parameter(p.to(of).clone()) for p in start]

    mine = parameters()
    rounded = dtype != torch.float32
    copies = {p: p.detach().to(dtype) for p in mine if p.dim() > 1 and rounded}
    adam = Adam(mine, e.learning_rate_g, betas, e.epsilon, copies=copies)

    def ours() -> None:
        for p, g in zip(mine, narrow, strict=True):
            copies.get(p, p).grad = g
        adam.step()

    def torchs(params: list[torch.nn.Parameter], *, fused: bool, capturable: bool = False) -> Run:
        other = torch.optim.Adam(
            params, e.learning_rate_g, betas, e.epsilon, fused=fused, capturable=capturable
        )
        pairs = [(p, torch.empty_like(p, dtype=dtype)) for p in params if p.dim() > 1 and rounded]

        @torch.no_grad()
        def run() -> None:
            for p, g in zip(params, narrow, strict=True):
                p.grad = g.to(p.dtype)
            other.step()
            if pairs:
                torch._foreach_copy_([copy for _, copy in pairs], [p for p, _ in pairs])

        return run

    def check() -> None:
        truth, theirs = parameters(torch.float64), parameters()
        for run in (ours, torchs(truth, fused=True), torchs(theirs, fused=True)):
            run()
            run()
        check_accuracy(
            *({str(i): p.detach() for i, p in enumerate(side)} for side in (mine, theirs, truth)),
            torch.float32,
        )
        if copies:
            check_same_bits(
                {str(i): copies[p] for i, p in enumerate(mine) if p in copies},
                {str(i): p.detach().to(dtype) for i, p in enumerate(mine) if p in copies},
                "working copies",
            )

    on_gpu = device.type == "cuda"
    values = sum(p.numel() for p in mine)
    return Case(
        "ops",
        name,
        ours,
        {
            EAGER: torchs(parameters(), fused=False, capturable=on_gpu),
            BEST: torchs(parameters(), fused=True, capturable=on_gpu),
        },
        check,
        e.name,
        precision,
        batch,
        bytes=6 * 4 * values + nbytes(*narrow, *copies.values()),
        more={"values": values},
    )
