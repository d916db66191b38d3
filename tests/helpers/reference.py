"""The reference on the images and codes of an iteration, and comparisons with it."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from fastinfogan.engine import Iteration
from fastinfogan.reference import Reference
from fastinfogan_kernels import philox
from fastinfogan_kernels.philox import Stream
from tests.helpers.training import made_up_images, watch_gradients


def step_reference(
    reference: Reference, iteration: Iteration, step: int
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Run an iteration of the reference on the images and codes of the product's.

    Returns:
        Losses less their MI terms, bounds of the D step, bounds of the G step.
    """
    e, s = reference.experiment, iteration.config
    images = made_up_images(e).images
    images = images[philox.shuffled_indices(s.seed, step * s.batch_size, s.batch_size, len(images))]
    low, high = e.image_range
    dtype = next(reference.trunk.parameters()).dtype
    real = torch.tensor(images).permute(0, 3, 1, 2).to(dtype) / 255 * (high - low) + low
    latents = [
        e.latents.draw(s.seed, step, stream, s.batch_size)
        for stream in (Stream.D_STEP, Stream.G_STEP)
    ]
    d, d_bounds = reference.d_step(real, latents[0])
    g, g_bounds = reference.g_step(latents[1])
    losses = [d + reference.weighted(d_bounds), g + reference.weighted(g_bounds)]
    return [loss.detach() for loss in losses], d_bounds, g_bounds


def widen(networks: Iterable[nn.Module]) -> None:
    """Weights of the scale that keeps activations near 1.

    The first images of the paper's 0.02 are all but constant; batch norm then divides rounding
    errors by next to nothing, and which side of a leaky ReLU's kink they fall on is chance.
    """
    source = torch.Generator().manual_seed(1)
    for network in networks:
        for parameter in network.parameters():
            if parameter.dim() > 1:
                fan_in = parameter[0].numel()
                drawn = torch.randn(parameter.shape, generator=source) / fan_in**0.5
                parameter.data.copy_(drawn)


def check_iteration(
    iteration: Iteration,
    step: int,
    run: Callable[[], object],
    *,
    autocast: torch.dtype | None = None,
    tolerance: float,
) -> None:
    """Check the losses, bounds and gradients of both steps against fp64, on the same weights.

    The error of each tensor, by its norm, may be at most twice that of the reference in fp32 or
    under autocast, plus a tolerance.

    Args:
        iteration: not yet run; its weights are overwritten, and not trained.
        step: the iteration's number.
        run: runs it.
        autocast: dtype of the baseline's autocast; None for fp32.
        tolerance: relative to the norm of the truth.
    """
    e, n = iteration.experiment, iteration.networks
    baseline, truth = (Reference(e, 3, dtype) for dtype in (torch.float32, torch.float64))
    for networks in ([n.generator, n.trunk, n.d_head, n.q_head], baseline.networks, truth.networks):
        widen(networks)
    iteration.restored()
    for each in (iteration, baseline, truth):
        for adam in (each.d_adam, each.g_adam):
            adam.param_groups[0]["lr"] = 0.0
    expected = []
    for reference, format_ in ((baseline, autocast), (truth, None)):
        gradients = _record_gradients(reference)
        with nullcontext() if format_ is None else torch.autocast("cpu", format_):
            losses, _, bounds = step_reference(reference, iteration, step)
        expected.append((gradients, torch.stack([t.detach().double() for t in (*losses, *bounds)])))
    scale = iteration.loss_scale.state[0].item() if iteration.loss_scale else 1.0
    actual: list[Tensor] = []
    watch_gradients(
        iteration, lambda _, found: actual.extend(g.detach().cpu().double() / scale for g in found)
    )
    run()
    (baseline_gradients, baseline_sums), (true_gradients, true_sums) = expected
    actual.append(iteration.sums.cpu().double())
    for one, torchs, true in zip(
        *map(
            _with_single_biases,
            (actual, [*baseline_gradients, baseline_sums], [*true_gradients, true_sums]),
        ),
        strict=True,
    ):
        allowed = 2 * (torchs - true).norm() + tolerance * true.norm() + 1e-9
        assert (one - true).norm() <= allowed, ((one - true).norm() / true.norm(), true.shape)


def _with_single_biases(gradients: list[Tensor]) -> list[Tensor]:
    """Join D's single bias to the weight before it: alone its errors may cancel by chance."""
    joined: list[Tensor] = []
    for gradient in gradients:
        if gradient.numel() == 1:
            joined[-1] = torch.cat([joined[-1].flatten(), gradient.flatten()])
        else:
            joined.append(gradient)
    return joined


def _record_gradients(reference: Reference) -> list[Tensor]:
    """Return a list to which the reference's steps add their gradients."""
    found: list[Tensor] = []

    def record(optimizer: torch.optim.Optimizer, *_: object) -> None:
        # Copies: the G step's backward adds to D's gradients.
        found.extend(p.grad.double().clone() for p in optimizer.param_groups[0]["params"])

    for adam in (reference.d_adam, reference.g_adam):
        adam.register_step_pre_hook(record)
    return found
