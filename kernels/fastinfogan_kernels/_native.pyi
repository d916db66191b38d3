"""Types of the C++ part (kernels/native); missing where there was no compiler.

Tensors are on the CPU and contiguous unless stated otherwise, and those written into do not require
grad. All are used in place, without a copy and outside of autograd. "Floating" is float32, bfloat16
or float16; arithmetic is in float32 for all of them. Results do not depend on the number of
threads. A wrong argument raises ValueError or TypeError with one line that names it.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

def instruction_sets() -> list[str]:
    """Return those of "plain", "avx2" and "avx512" that this processor can run, best last."""

def instruction_set() -> str:
    """Return the one in use; by default the best."""

def use_instruction_set(name: str) -> None:
    """Use another one in the whole process.

    Raises:
        ValueError: this processor cannot run it.
    """

def threads() -> int:
    """Return the threads of large operations: torch.get_num_threads(), or 1 without OpenMP."""

def encrypt(
    counter: Sequence[int], k0: int, k1: int, rounds: int = 10
) -> tuple[int, int, int, int]: ...
def words(
    seed: int, step: int, stream: int, rows: int, columns: int, first_row: int = 0
) -> NDArray[np.uint32]: ...
def uniform(drawn: NDArray[np.uint32]) -> NDArray[np.float32]: ...
def normal(drawn: NDArray[np.uint32]) -> NDArray[np.float32]: ...
def below(drawn: NDArray[np.uint32], bound: int) -> NDArray[np.int64]: ...
def draw_codes(
    seed: int,
    step: int,
    stream: int,
    first_row: int,
    noise_size: int,
    normal: bool,
    class_counts: list[int],
    generator_input: Tensor,
    classes: Tensor,
    continuous: Tensor,
) -> None:
    """LatentSpec.draw and generator_input, bit for bit, rounded to nearest even.

    Args:
        seed: as in philox.words.
        step: as in philox.words.
        stream: as in philox.words.
        first_row: as in philox.words.
        noise_size: number of noise dimensions, the first columns.
        normal: noise from N(0, 1), else from U(-1, 1).
        class_counts: the number of classes of each categorical code.
        generator_input: written, floating (B, noise_size + sum(class_counts) + continuous codes).
        classes: written, int64 (B, categorical codes).
        continuous: written, float32 (B, continuous codes).
    """

def q_head_log_likelihood(
    output: Tensor,
    classes: Tensor,
    continuous: Tensor,
    table: Tensor,
    bounds: Tensor,
    scales: Tensor,
    rows: Tensor | None,
    values: Tensor,
    gradient: Tensor,
    counters: Tensor,
) -> None:
    """Log-likelihood of the codes under Q, in nats, and its gradient.

    Args:
        output: floating (B, W), Q's raw output.
        classes: int64 (B, categorical codes).
        continuous: float32 (B, continuous codes).
        table: int32 (n, 4), where each code is; see objective/code_layout.py.
        bounds: float32 (n, 2), the clip of each log-deviation.
        scales: float32 (n,), the factor of each code's gradient.
        rows: written, float32 (B, n), every row's log-likelihood; or None.
        values: written, float32 (n,), the means over the rows.
        gradient: written, as output: scales * d(row's log-likelihood) / d(output).
        counters: added to, int32 (2,): classes out of range (their value and gradient are NaN),
            non-finite rows of output.
    """

def d_head_objective(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    scale: float,
    logits: Tensor,
    losses: Tensor,
    gradient: Tensor,
    counters: Tensor,
) -> None:
    """D's last layer, features @ weight + bias, its losses of groups of equal size, their gradient.

    Args:
        features: floating (R, K).
        weight: (K,), of the features' type or float32.
        bias: float32 (1,) or None.
        targets: int32 (groups,): 1 for real, so softplus(-logit); 0 for generated, so
            softplus(logit).
        scale: factor of the gradient.
        logits: written, float32 (R,).
        losses: written, float32 (groups,), means over the group's rows.
        gradient: written, float32 (R,): scale * d(loss of the group) / d(logit).
        counters: added to, int32 (1,): non-finite logits.
    """

def adam(
    parameters: list[Tensor],
    gradients: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    working_copies: list[Tensor | None],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: float,
    grad_scale: float,
) -> None:
    """One step of torch.optim.Adam, and the parameters' working copies in the same pass.

    The tensors of a parameter have the same shape and strides, any without gaps.

    Args:
        parameters: updated, float32.
        gradients: floating.
        exp_avgs: updated, float32.
        exp_avg_sqs: updated, float32.
        working_copies: written, the updated parameters as bfloat16 or float16; or None.
        lr: learning rate.
        beta1: decay of exp_avgs, from 0 to less than 1.
        beta2: decay of exp_avg_sqs, from 0 to less than 1.
        eps: added to the root of the corrected exp_avg_sqs.
        step: number of this update, counted from 1.
        grad_scale: what the gradients are divided by.
    """

def norm_statistics(
    y: Tensor, groups: int, mean: Tensor, rstd: Tensor, variance: Tensor, eps: float
) -> None:
    """Batch statistics of every channel in each of `groups` equal parts of the images.

    Args:
        y: floating (images, pixels, channels): channels_last memory.
        groups: how many.
        mean: written, float32 (groups, channels).
        rstd: written, as mean: 1 / sqrt(variance + eps).
        variance: written, as mean; biased.
        eps: of rstd.
    """

def norm_apply(
    y: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: int,
    slope: float,
    out: Tensor,
) -> None:
    """Write act(scale * y + shift), or act(y).

    Args:
        y: floating (images, pixels, channels).
        scale: float32 (groups, channels) or None.
        shift: as scale.
        activation: 0 none, 1 ReLU or leaky ReLU, 2 sigmoid, 3 tanh.
        slope: of the leaky ReLU; 0 for ReLU.
        out: written, as y; may be y.
    """

def norm_gradient(
    dout: Tensor,
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    activation: int,
    slope: float,
    dy: Tensor | None,
    dgamma: Tensor,
    dbeta: Tensor,
) -> None:
    """Backward of act(gamma * (y - mean) * rstd + beta) with batch statistics.

    Args:
        dout: floating (images, pixels, channels).
        y: as dout.
        scale: float32 (groups, channels), gamma * rstd; and so on, as norm_apply took them.
        shift: as scale.
        mean: as scale.
        rstd: as scale.
        gamma: float32 (channels,).
        activation: see norm_apply.
        slope: see norm_apply.
        dy: written, as dout; or None if only dgamma and dbeta are needed.
        dgamma: written, float32 (channels,).
        dbeta: written, as dgamma.
    """

def activation_gradient(
    dout: Tensor,
    out_or_z: Tensor,
    from_output: bool,
    activation: int,
    slope: float,
    dz: Tensor,
    dbias: Tensor | None,
) -> None:
    """Write dout * act'(z): the backward of layers without batch norm.

    Args:
        dout: floating (images, pixels, channels).
        out_or_z: as dout: act(z) if from_output, else z.
        from_output: which of them; the slope of a leaky ReLU must then be 0 or more.
        activation: see norm_apply.
        slope: see norm_apply.
        dz: written, as dout; may be dout.
        dbias: written, float32 (channels,), the sums of dz before it was rounded; or None.
    """
