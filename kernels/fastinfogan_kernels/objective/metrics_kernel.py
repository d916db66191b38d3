"""What an iteration measured, added up on the device until somebody reads it."""

from fastinfogan_kernels.runtime.lang import tl, triton


@triton.jit
def accumulate_kernel(
    d_losses_ptr,  # fp32 (2): of real and of generated images
    g_losses_ptr,  # fp32 (1)
    values_ptr,  # fp32 (CODES): mean log-likelihoods
    entropies_ptr,  # fp32 (CODES)
    problems_ptr,  # int32 (1): 0 if the iteration was finite, see `measures`; 0 afterwards
    sums_ptr,  # fp32 (2 + CODES), added to
    tally_ptr,  # int32 (3), added to: iterations summed, skipped, skipped without a break
    scaling_ptr,  # fp32 (2) or None: the loss scale, good iterations since it changed
    base_ptr,  # fp32 (WEIGHTS) or None
    weights_ptr,  # fp32 (WEIGHTS) out, or None: base times the scale
    counter_ptr,  # int64 (1) or None: the iteration's number, which becomes the next one's
    CODES, WEIGHTS,
    OVERFLOWED: tl.constexpr, GROWTH: tl.constexpr, LEAST: tl.constexpr, MOST: tl.constexpr,
    TOO_MANY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums += (D's loss, G's loss, each code's bound) if nothing was wrong. Grid: (1,)."""
    problems = tl.load(problems_ptr)
    wrong = problems != 0
    c = tl.arange(0, BLOCK)
    ok = c < CODES
    bounds = tl.load(values_ptr + c, mask=ok, other=0.0)
    bounds += tl.load(entropies_ptr + c, mask=ok, other=0.0)
    d_loss = tl.load(d_losses_ptr) + tl.load(d_losses_ptr + 1)
    g_loss = tl.load(g_losses_ptr)
    summed, skipped, broken = tl.load(tally_ptr), tl.load(tally_ptr + 1), tl.load(tally_ptr + 2)
    also_broken = 1
    if scaling_ptr is not None:
        scale, since = tl.load(scaling_ptr), tl.load(scaling_ptr + 1)
        if (problems == OVERFLOWED) & (scale > LEAST):
            also_broken = 0
        factor = 1.0
        if problems >= OVERFLOWED:
            since, factor = 0.0, 0.5
        elif problems == 0:
            since += 1.0
            if since >= GROWTH:
                since, factor = 0.0, 2.0
        scale = tl.minimum(tl.maximum(scale * factor, LEAST), MOST)
        tl.store(scaling_ptr, scale)
        tl.store(scaling_ptr + 1, since)
        base = tl.load(base_ptr + c, mask=c < WEIGHTS, other=0.0)
        tl.store(weights_ptr + c, base * scale, mask=c < WEIGHTS)
    if wrong:
        tl.store(tally_ptr + 1, skipped + 1)
        tl.store(tally_ptr + 2, broken + also_broken)
        tl.store(problems_ptr, 0)
    else:
        tl.store(sums_ptr, tl.load(sums_ptr) + d_loss)
        tl.store(sums_ptr + 1, tl.load(sums_ptr + 1) + g_loss)
        to = sums_ptr + 2 + c
        tl.store(to, tl.load(to, mask=ok, other=0.0) + bounds, mask=ok)
        tl.store(tally_ptr, summed + 1)
        # Too many in a row are kept until somebody reads of them.
        tl.store(tally_ptr + 2, tl.where(broken >= TOO_MANY, broken, 0))
    if counter_ptr is not None:
        tl.store(counter_ptr, tl.load(counter_ptr) + 1)
