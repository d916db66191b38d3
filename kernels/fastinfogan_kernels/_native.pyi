"""Types of the C++ part (kernels/native); absent where no compiler was at hand.

Tensors are on the CPU and contiguous unless said otherwise, and those written into do not require
grad. All are used in place, without a copy and without telling autograd. "Floating" is float32,
bfloat16 or float16; arithmetic is float32 whatever the tensors are. Results do not depend on the
number of threads. A wrong argument raises ValueError or TypeError, in one line that names it.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

def instruction_sets() -> list[str]:
    """Of "plain", "avx2" and "avx512" those that this processor can run, best last."""

def instruction_set() -> str:
    """The one in use: at first the best."""

def use_instruction_set(name: str) -> None:
    """Change it, for the whole process.

    Raises:
        ValueError: this processor cannot run it.
    """

def threads() -> int:
    """How many threads large operations use: torch.get_num_threads(), or 1 without OpenMP."""

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
    """LatentSpec.draw and generator_input, bit for bit; narrower types rounded to nearest even.

    Args:
        seed: see philox.words, as are step, stream and first_row.
        step: see there.
        stream: see there.
        first_row: see there.
        noise_size: how many noise numbers a row begins with.
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
    problems: Tensor,
) -> None:
    """Log-likelihood of the codes under Q, in nats, and its gradient.

    Args:
        output: floating (B, W), Q's raw output.
        classes: int64 (B, categorical codes).
        continuous: float32 (B, continuous codes).
        table: int32 (n, 4), where each code stands; see kernels/code_table.py.
        bounds: float32 (n, 2), the clip of each log-deviation.
        scales: float32 (n,), what each code's gradient is multiplied by.
        rows: written, float32 (B, n), every row's log-likelihood; or None.
        values: written, float32 (n,), the means over the rows.
        gradient: written, as output: scales * d(row's log-likelihood) / d(output).
        problems: added to, int32 (2,): classes out of range (NaN as value and gradient), rows of
            output that are not finite.
    """

def adversarial_losses(
    logits: Tensor,
    targets: Tensor,
    scale: float,
    losses: Tensor,
    gradient: Tensor,
    problems: Tensor,
) -> None:
    """D's losses from its logits, of groups of equally many rows, and their gradient.

    Args:
        logits: floating (R,).
        targets: int32 (groups,): 1 to be called real, so softplus(-logit); 0 to be called
            generated, so softplus(logit).
        scale: what the gradient is multiplied by.
        losses: written, float32 (groups,), means over the group's rows.
        gradient: written, as logits: scale * d(loss of the group) / d(logit).
        problems: added to, int32 (1,): logits that are not finite.
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
    problems: Tensor,
) -> None:
    """D's last layer, features @ weight + bias, and adversarial_losses of it.

    Args:
        features: floating (R, K).
        weight: (K,), of the features' type or float32.
        bias: float32 (1,) or None.
        targets: see adversarial_losses, as are the others.
        scale: see there.
        logits: written, float32 (R,).
        losses: see there.
        gradient: written, float32 (R,), with respect to the logits.
        problems: see there.
    """

def adam(
    parameters: list[Tensor],
    gradients: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    copies: list[Tensor | None],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: float,
    grad_scale: float,
) -> None:
    """One step of torch.optim.Adam, and the parameters' narrow copies in the same pass.

    Tensors of one parameter have one shape and one order in memory, any without gaps.

    Args:
        parameters: updated, float32.
        gradients: floating.
        exp_avgs: updated, float32.
        exp_avg_sqs: updated, float32.
        copies: written, the updated parameters as bfloat16 or float16; or None.
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
        activation: 0 none, 1 rectifier, 2 sigmoid, 3 tanh.
        slope: of the rectifier below 0; 0 for ReLU.
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
        dy: written, as dout; or None where only dgamma and dbeta are wanted.
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
        from_output: which of them; a rectifier's slope must then be 0 or more.
        activation: see norm_apply.
        slope: see norm_apply.
        dz: written, as dout; may be dout.
        dbias: written, float32 (channels,), the sums of dz before it was rounded; or None.
    """
