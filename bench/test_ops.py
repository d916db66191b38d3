"""Each operation that has an implementation in C++, against the same in PyTorch, at MNIST's shapes.

Both sides are checked to give the same numbers before they are timed.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pairs import Interleaved
from torch import Tensor
from torch.nn import functional as F

from fastinfogan import experiments
from fastinfogan.kernels import adversarial, epilogue, likelihood
from fastinfogan.kernels.backend import native_available
from fastinfogan.kernels.draw import draw_codes
from fastinfogan.latents import LatentSpec
from fastinfogan.networks import InfoGAN
from fastinfogan.optim import Adam
from fastinfogan.philox import Stream

pytestmark = pytest.mark.skipif(not native_available(), reason="_native not compiled")

ROWS, ROUNDS = 128, 30
AIM = 0.5  # of PyTorch's time, or the reason is told in the README
Run = Callable[[], Any]


def compare(
    benchmark: Any,  # noqa: ANN401
    report: list[str],
    name: str,
    ours: Run,
    peer: Run,
    *,
    repeat: int = 1,
) -> None:
    """Time both turn by turn, each `repeat` times a round."""

    def times(run: Run) -> Run:
        def repeated() -> None:
            for _ in range(repeat):
                run()

        return repeated

    pair = Interleaved(times(ours), times(peer))
    for _ in range(3):
        pair()
    pair.times.clear()
    benchmark.pedantic(pair, rounds=ROUNDS)
    low, high = pair.times.quartiles
    benchmark.extra_info |= {"ratio": pair.times.ratio, "quartiles": [low, high]}
    ratio, missed = pair.times.ratio, "" if pair.times.ratio <= AIM else f"; the aim is {AIM}"
    report.append(
        f"{name}: {ratio:.3f} of PyTorch's time, quartiles {low:.3f} to {high:.3f}{missed}"
    )


def alike(ours: Any, theirs: Any, tolerance: float) -> None:  # noqa: ANN401
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, check_dtype=False)


@pytest.mark.parametrize("name", ["mnist", "celeba"])
@pytest.mark.benchmark(group="objective")
def test_likelihood_and_its_gradient(benchmark: Any, report: list[str], name: str) -> None:  # noqa: ANN401
    spec = experiments.get(name).latents
    output = torch.randn(ROWS, spec.output_width).bfloat16()
    codes = draw_codes(spec, 1, 0, Stream.D_STEP, ROWS)
    targets = (codes.classes, codes.continuous, spec)

    def ours() -> tuple[Tensor, Tensor]:
        return likelihood.likelihood_with_gradient(output, *targets)

    def peer() -> tuple[Tensor, Tensor]:
        leaf = output.detach().requires_grad_()
        values = by_torch(leaf, *targets)
        values.sum().backward()
        assert leaf.grad is not None
        return values.detach(), leaf.grad

    for a, b in zip(ours(), peer(), strict=True):
        alike(a.float(), b.float(), 1e-2)
    compare(benchmark, report, f"likelihood of {name}'s codes, bf16", ours, peer, repeat=10)


def by_torch(output: Tensor, classes: Tensor, continuous: Tensor, spec: LatentSpec) -> Tensor:
    """The usual composition: cross entropies, and one Gaussian density of all continuous codes."""
    wide = output.float()
    values = [
        -F.cross_entropy(wide[:, place], classes[:, i]) for i, place in enumerate(spec.logit_slices)
    ]
    if spec.continuous:
        means, raw = wide[:, spec.mean_slice], wide[:, spec.deviation_slice]
        density = torch.distributions.Normal(means, raw.exp(), validate_args=False)
        values += density.log_prob(continuous).mean(0).unbind()  # type: ignore[no-untyped-call]
    return torch.stack(values)


@pytest.mark.benchmark(group="objective")
def test_adversarial_losses_and_their_gradient(benchmark: Any, report: list[str]) -> None:  # noqa: ANN401
    logits = torch.randn(2 * ROWS).bfloat16()

    def ours() -> tuple[Tensor, Tensor]:
        losses, gradient = adversarial.losses_with_gradient(logits, (1, 0))
        return losses.sum(), gradient

    def peer() -> tuple[Tensor, Tensor]:
        leaf = logits.detach().requires_grad_()
        real, fake = leaf.float().chunk(2)
        loss = F.softplus(-real).mean() + F.softplus(fake).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        return loss.detach(), leaf.grad

    for a, b in zip(ours(), peer(), strict=True):
        alike(a.float(), b.float(), 1e-3)
    compare(benchmark, report, "D's losses, bf16", ours, peer, repeat=10)


@pytest.mark.benchmark(group="codes")
def test_codes(benchmark: Any, report: list[str]) -> None:  # noqa: ANN401
    """Against torch's own generator, whose numbers are others."""
    spec = experiments.get("mnist").latents
    step = iter(range(10**9))

    def ours() -> Tensor:
        drawn = draw_codes(spec, 1, next(step), Stream.D_STEP, ROWS, dtype=torch.bfloat16)
        return drawn.generator_input

    def peer() -> Tensor:
        noise = torch.rand(ROWS, spec.noise.size) * 2 - 1
        classes = torch.randint(0, 10, (ROWS, 1))
        continuous = torch.rand(ROWS, 2) * 2 - 1
        one_hot = F.one_hot(classes[:, 0], 10)
        return torch.cat([noise, one_hot, continuous], dim=1).bfloat16()

    assert ours().shape == peer().shape
    compare(benchmark, report, "noise and codes of mnist", ours, peer, repeat=10)


@pytest.mark.parametrize("peer_name", ["torch's fused Adam and its casts", "torch's default Adam"])
@pytest.mark.benchmark(group="adam")
def test_adam(benchmark: Any, report: list[str], peer_name: str) -> None:  # noqa: ANN401
    """Gradients in bf16, as a bf16 network leaves them; the peer casts them and the weights."""
    parameters = {
        who: [p for p in InfoGAN(experiments.get("mnist")).parameters() if p.requires_grad]
        for who in ("ours", "peer")
    }
    gradients = [torch.randn_like(p) * 1e-3 for p in parameters["ours"]]
    narrow = [g.bfloat16() if g.dim() > 1 else g for g in gradients]
    kept = {p: p.detach().bfloat16() for p in parameters["ours"] if p.dim() > 1}
    adam = Adam(parameters["ours"], 1e-3, (0.5, 0.999), copies=kept)
    fused = True if "fused" in peer_name else None
    other = torch.optim.Adam(parameters["peer"], 1e-3, (0.5, 0.999), fused=fused)
    casts = [torch.empty_like(p, dtype=torch.bfloat16) for p in parameters["peer"] if p.dim() > 1]

    def ours() -> None:
        for p, g in zip(parameters["ours"], narrow, strict=True):
            kept.get(p, p).grad = g
        adam.step()

    def peer() -> None:
        for p, g in zip(parameters["peer"], narrow, strict=True):
            p.grad = g.to(p.dtype)
        other.step()
        wide = [p for p in parameters["peer"] if p.dim() > 1]
        with torch.no_grad():
            for copy, p in zip(casts, wide, strict=True):
                copy.copy_(p)

    ours()
    peer()
    for a, b in zip(*parameters.values(), strict=True):
        alike(a, b, 1e-6)
    compare(benchmark, report, f"Adam of mnist's 13.3 M parameters, {peer_name}", ours, peer)


MAPS = {
    "trunk, 7x7x128, two groups": ((256, 7, 7, 128), 2),
    "generator, 14x14x64": ((128, 14, 14, 64), 1),
    "generator, 6272 features": ((128, 1, 1, 6272), 1),
    "trunk, 1024 features, two groups": ((256, 1, 1, 1024), 2),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("way", ["forward", "backward"])
@pytest.mark.parametrize("name", MAPS)
@pytest.mark.benchmark(group="epilogue")
def test_batch_norm_and_leaky_relu(
    benchmark: Any,  # noqa: ANN401
    report: list[str],
    name: str,
    way: str,
    dtype: torch.dtype,
) -> None:
    shape, groups = MAPS[name]
    features = shape[3]
    y, dout = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    gamma, beta = torch.rand(features) + 0.5, torch.randn(features)
    mean, var = torch.zeros(features), torch.ones(features)
    leaf = y.permute(0, 3, 1, 2).detach().requires_grad_()
    weight, bias = gamma.clone().requires_grad_(), beta.clone().requires_grad_()
    upstream = dout.permute(0, 3, 1, 2)

    def forward() -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = epilogue.norm_activation(
            y, gamma, beta, mean, var, groups, 0.1, 1e-5, "rectifier", 0.1
        )
        return found

    def torchs_forward() -> Tensor:
        parts = leaf.chunk(groups)
        normal = [F.batch_norm(part, mean, var, weight, bias, True) for part in parts]
        return F.leaky_relu_(torch.cat(normal) if groups > 1 else normal[0], 0.1)

    out, params = forward()
    theirs = torchs_forward()
    alike(
        out.permute(0, 3, 1, 2).float(), theirs.float(), 2e-2 if dtype == torch.bfloat16 else 1e-4
    )

    def backward() -> object:
        return epilogue.norm_activation_gradient(dout, y, params, gamma, "rectifier", 0.1)

    def torchs_backward() -> object:
        return torch.autograd.grad(theirs, [leaf, weight, bias], upstream, retain_graph=True)

    sides = (forward, torchs_forward) if way == "forward" else (backward, torchs_backward)
    label = f"batch norm + leaky ReLU, {way}, {name}, {str(dtype).removeprefix('torch.')}"
    compare(benchmark, report, label, *sides, repeat=4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("way", ["forward", "backward"])
@pytest.mark.benchmark(group="epilogue")
def test_leaky_relu_alone(
    benchmark: Any,  # noqa: ANN401
    report: list[str],
    way: str,
    dtype: torch.dtype,
) -> None:
    """The trunk's first layer, which has no batch norm; forward in place on both sides."""
    y, dout = (torch.randn(256, 14, 14, 64).to(dtype) for _ in range(2))
    leaf = y.clone().requires_grad_()
    out = y.clone()
    epilogue.activation_(out, "rectifier", 0.1)
    theirs = F.leaky_relu(leaf, 0.1)
    alike(out, theirs, 1e-2)

    def backward() -> object:
        return epilogue.activation_gradient(dout, out, "rectifier", 0.1, None)

    def torchs_backward() -> object:
        return torch.autograd.grad(theirs, leaf, dout, retain_graph=True)

    sides: tuple[Run, Run] = (backward, torchs_backward)
    if way == "forward":
        one, other = y.clone(), y.clone()
        sides = (
            lambda: epilogue.activation_(one, "rectifier", 0.1),
            lambda: F.leaky_relu_(other, 0.1),
        )
    label = f"leaky ReLU alone, {way}, 14x14x64, {str(dtype).removeprefix('torch.')}"
    compare(benchmark, report, label, *sides, repeat=4)
