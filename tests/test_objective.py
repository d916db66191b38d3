"""The objective's values: bounds, weights and extremes; its kernels are tested on their own."""

import math

import pytest
import torch

from fastinfogan import experiments
from fastinfogan.objective import information_bounds
from fastinfogan_kernels.latents import Categorical
from fastinfogan_kernels.objective.d_head import adversarial_losses
from tests.helpers.specs import spec_of

SPEC = spec_of(Categorical(10))
CLASSES = torch.arange(10)[:, None]


def bound(q_output: torch.Tensor, classes: torch.Tensor = CLASSES) -> float:
    return information_bounds(q_output, classes, torch.empty(10, 0), SPEC).item()


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([1e4, -1e4])
    real, generated = adversarial_losses(logits.repeat(2), (1, 0)).tolist()
    assert real == generated == pytest.approx(5e3)


def test_the_bound_of_a_perfect_and_of_an_ignorant_q() -> None:
    assert bound(50.0 * torch.eye(10)) == pytest.approx(math.log(10), abs=1e-6)
    assert bound(torch.zeros(10, 10)) == pytest.approx(0, abs=1e-6)


def test_a_bound_of_invalid_data_is_nan() -> None:
    assert math.isnan(bound(torch.zeros(10, 10), CLASSES + 1))


def test_each_kind_of_code_has_its_own_lambda() -> None:
    assert experiments.get("chairs").lambdas == [1.0, 1.0, 1.0, 10.0]
