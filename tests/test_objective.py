"""The objective against scipy and the formulas of the paper, and at extremes."""

import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from fastinfogan import experiments
from fastinfogan.objective import information_bounds
from fastinfogan_kernels.latents import Categorical, Continuous, LatentSpec, Noise
from fastinfogan_kernels.objective.d_head import adversarial_losses
from fastinfogan_kernels.objective.likelihood import q_head_log_likelihood as log_likelihood

SPEC = LatentSpec(
    Noise(1),
    (
        Categorical(3),
        Categorical(5),
        Continuous("learned"),
        Continuous("fixed"),
        Continuous("clipped", (0.5, 2.0)),
    ),
)


def d_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    return adversarial_losses(real, (1,))[0] + adversarial_losses(fake, (0,))[0]


def g_loss(fake: torch.Tensor) -> torch.Tensor:
    return adversarial_losses(fake, (1,))[0]


def drawn(rows: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(1)
    output = torch.tensor(random.normal(size=(rows, SPEC.output_width)) * 2)
    classes = torch.tensor(np.stack([random.integers(0, k, rows) for k in (3, 5)], axis=1))
    return output, classes, torch.tensor(random.uniform(-1, 1, (rows, 3)))


def test_log_likelihood_is_scipys() -> None:
    output, classes, continuous = drawn()
    q, c = output.numpy(), continuous.numpy()
    expected = [
        np.take_along_axis(special.log_softmax(q[:, :3], 1), classes[:, :1].numpy(), 1).mean(),
        np.take_along_axis(special.log_softmax(q[:, 3:8], 1), classes[:, 1:].numpy(), 1).mean(),
        stats.norm.logpdf(c[:, 0], q[:, 8], np.exp(q[:, 11])).mean(),
        stats.norm.logpdf(c[:, 1], q[:, 9], 1.0).mean(),
        stats.norm.logpdf(c[:, 2], q[:, 10], np.clip(np.exp(q[:, 13]), 0.5, 2.0)).mean(),
    ]
    found = log_likelihood(output, classes, continuous, SPEC)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_gradients_are_exact_and_stop_where_a_clip_is_active() -> None:
    output, classes, continuous = drawn(6)
    output.requires_grad_()
    assert torch.autograd.gradcheck(lambda q: log_likelihood(q, classes, continuous, SPEC), output)
    log_likelihood(output, classes, continuous, SPEC).sum().backward()
    clipped = (output[:, 13].exp() < 0.5) | (output[:, 13].exp() > 2.0)
    assert clipped.any()
    assert torch.equal(output.grad[:, 13] == 0, clipped)  # type: ignore[index]
    assert (output.grad[:, 12] == 0).all()  # type: ignore[index]


def test_losses_are_the_papers_formulas() -> None:
    real, fake = torch.tensor([0.3, -2.0, 4.0]).double(), torch.tensor([-1.0, 0.2]).double()
    expected = -torch.sigmoid(real).log().mean() - (1 - torch.sigmoid(fake)).log().mean()
    torch.testing.assert_close(d_loss(real, fake), expected)
    torch.testing.assert_close(g_loss(fake), -torch.sigmoid(fake).log().mean())


def test_extreme_logits_stay_finite() -> None:
    huge = torch.tensor([1e4, -1e4])
    assert d_loss(huge, huge).item() == pytest.approx(1e4)
    assert g_loss(huge).item() == pytest.approx(5e3)
    spec = LatentSpec(Noise(1), (Categorical(2),))
    surely_wrong = log_likelihood(
        torch.tensor([[1e4, -1e4]]), torch.tensor([[1]]), torch.empty(1, 0), spec
    )
    assert surely_wrong.item() == -2e4


def test_computed_in_fp32_whatever_the_input() -> None:
    output, classes, continuous = drawn()
    narrow = log_likelihood(output.bfloat16(), classes, continuous.float(), SPEC)
    assert narrow.dtype == torch.float32
    same = log_likelihood(output.bfloat16().float(), classes, continuous.float(), SPEC)
    assert torch.equal(narrow, same)
    assert d_loss(output.bfloat16(), output.bfloat16()).dtype == torch.float32


def test_the_bound_of_a_perfect_and_of_an_ignorant_q() -> None:
    spec = LatentSpec(Noise(1), (Categorical(10),))
    codes = (torch.arange(10)[:, None], torch.empty(10, 0), spec)
    perfect = information_bounds(50.0 * torch.eye(10), *codes)
    assert perfect.item() == pytest.approx(math.log(10), abs=1e-6)
    assert information_bounds(torch.zeros(10, 10), *codes).item() == pytest.approx(0, abs=1e-6)


def test_a_bound_of_invalid_data_is_nan() -> None:
    spec = LatentSpec(Noise(1), (Categorical(10),))
    codes = (torch.arange(10)[:, None] + 1, torch.empty(10, 0), spec)
    assert information_bounds(torch.zeros(10, 10), *codes).isnan().all()


def test_each_kind_of_code_has_its_own_lambda() -> None:
    assert experiments.get("chairs").lambdas == [1.0, 1.0, 1.0, 10.0]


def test_a_plain_gan_without_codes_has_an_empty_bound() -> None:
    no_codes = LatentSpec(Noise(4), ())
    found = log_likelihood(
        torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, 0), no_codes
    )
    assert found.shape == (0,)
