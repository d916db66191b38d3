"""Adam for all parameters of a network in one launch, without moving any of them.

    m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g^2        t = step + 1
    p = p - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)

fp32 throughout; g may be bf16 or fp16, and a copy of p in bf16 or fp16 is rounded in the same pass.
A program updates one chunk of one tensor, which it finds by the addresses in a table on the device.
The last program to finish moves the step counters on, when all have read them.
"""

from fastinfogan_kernels.runtime.lang import tl, triton


@triton.jit
def expm1(x):
    """exp(x) - 1 for x <= 0, in fp32, to a relative error under 3e-7.

    1 - beta^t is -expm1(t log beta): computed as it stands, at beta 0.999 and t 1, it would be
    wrong by 6e-5, and the update with it.
    """
    series = 1.0 + x * (1.0 / 12)
    for k in tl.static_range(11, 1, -1):
        series = 1.0 + x * series * (1.0 / k)
    return tl.where(x > -1.0, x * series, tl.exp(x) - 1.0)


@triton.jit
def corrections(step_ptr, lr, log_beta1, log_beta2, LR_ON_DEVICE: tl.constexpr):
    """The update's lr / (1 - beta1^t) and sqrt(1 - beta2^t); it follows `step` others."""
    if LR_ON_DEVICE:
        lr = tl.load(lr)
    t = tl.load(step_ptr) + 1.0
    return lr / -expm1(t * log_beta1), tl.sqrt_rn(-expm1(t * log_beta2))


@triton.jit
def updated(p, g, m, v, rate, root, beta1, rest1, beta2, rest2, eps):
    """The new p, m and v; `rate` and `root` are `corrections`, rest is 1 - beta. All fp32."""
    m = beta1 * m + rest1 * g
    v = beta2 * v + rest2 * g * g
    return p - rate * (m / (tl.sqrt_rn(v) / root + eps)), m, v


@triton.jit
def _load(address, at, elements, TYPE: tl.constexpr, WHOLE: tl.constexpr):
    """A chunk as fp32. WHOLE: all of it is there, and the address is one of 16 bytes.

    The hint holds where the pointer is made; on an argument it would be lost.
    """
    if WHOLE:
        value = tl.load(tl.multiple_of(address.to(tl.pointer_type(TYPE)), 16) + at)
    else:
        ptr = address.to(tl.pointer_type(TYPE))
        value = tl.load(ptr + at, mask=at < elements, other=0.0)
    return value.to(tl.float32)


@triton.jit
def _load_gradient(address, at, elements, kind, WHOLE: tl.constexpr):
    """As `_load`, of the type that the table tells: see `slots.KINDS`."""
    if kind == 0:
        g = _load(address, at, elements, tl.float32, WHOLE)
    elif kind == 1:
        g = _load(address, at, elements, tl.bfloat16, WHOLE)
    else:
        g = _load(address, at, elements, tl.float16, WHOLE)
    return g


@triton.jit
def _store(address, at, value, elements, TYPE: tl.constexpr, WHOLE: tl.constexpr):
    """Write a chunk, rounded; as `_load`."""
    if WHOLE:
        tl.store(tl.multiple_of(address.to(tl.pointer_type(TYPE)), 16) + at, value.to(TYPE))
    else:
        ptr = address.to(tl.pointer_type(TYPE))
        tl.store(ptr + at, value.to(TYPE), mask=at < elements)


@triton.jit
def _update_part(
    entry, at, elements, inverse_scale, rate, root, beta1, rest1, beta2, rest2, eps,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """Update some elements; `entry` is the tensor's in the table."""
    p_at, g_at, m_at, v_at = (
        tl.load(entry), tl.load(entry + 1), tl.load(entry + 2), tl.load(entry + 3),
    )  # fmt: skip
    copy_at, g_kind, copy_kind = tl.load(entry + 5), tl.load(entry + 7), tl.load(entry + 8)
    g = _load_gradient(g_at, at, elements, g_kind, WHOLE)
    p, m, v = updated(
        _load(p_at, at, elements, tl.float32, WHOLE), g * inverse_scale,
        _load(m_at, at, elements, tl.float32, WHOLE), _load(v_at, at, elements, tl.float32, WHOLE),
        rate, root, beta1, rest1, beta2, rest2, eps,
    )  # fmt: skip
    _store(p_at, at, p, elements, tl.float32, WHOLE)
    _store(m_at, at, m, elements, tl.float32, WHOLE)
    _store(v_at, at, v, elements, tl.float32, WHOLE)
    if copy_kind == 1:
        _store(copy_at, at, p, elements, tl.bfloat16, WHOLE)
    elif copy_kind == 2:
        _store(copy_at, at, p, elements, tl.float16, WHOLE)


@triton.jit(do_not_specialize=["counted"])
def adam_kernel(
    table_ptr,  # int64: (TENSORS, FIELDS), then (CHUNKS): see `slots.AddressTable`
    counters_ptr,  # int32 (2): programs that have finished, 0 between launches; updates skipped
    found_inf_ptr,  # fp32 (1) or None: not 0, and nothing is updated
    grad_scale_ptr,  # fp32 (1) or None: gradients are divided by it
    lr,  # fp32 () on the device, or a number
    beta1, rest1, log_beta1, beta2, rest2, log_beta2, eps,  # rest is 1 - beta
    counted,  # added to the updates skipped, if this one is
    TENSORS, CHUNKS,
    LR_ON_DEVICE: tl.constexpr, FIELDS: tl.constexpr, CHUNK: tl.constexpr,
    PART: tl.constexpr,
):  # fmt: skip
    """See the module. Grid: (chunks of all tensors, or 1 if there are none,)."""
    good = True
    if found_inf_ptr is not None:
        good = tl.load(found_inf_ptr) == 0.0
    inverse_scale = 1.0
    if grad_scale_ptr is not None:
        inverse_scale = 1.0 / tl.load(grad_scale_ptr)
    if good & (tl.program_id(0) < CHUNKS):
        place = tl.load(table_ptr + TENSORS * FIELDS + tl.program_id(0))
        entry = table_ptr + (place >> 32) * FIELDS
        start = (place & 0xFFFFFFFF) * CHUNK
        elements = tl.load(entry + 6)
        step_ptr = tl.load(entry + 4).to(tl.pointer_type(tl.float32))
        rate, root = corrections(step_ptr, lr, log_beta1, log_beta2, LR_ON_DEVICE)
        if (start + CHUNK <= elements) & (tl.load(entry + 9) != 0):
            _update_part(
                entry, start + tl.arange(0, CHUNK), elements, inverse_scale, rate, root,
                beta1, rest1, beta2, rest2, eps, True,
            )  # fmt: skip
        else:
            # In parts: masked, unaligned loads are one register of address a value.
            for first in range(start, min(start + CHUNK, elements), PART):
                _update_part(
                    entry, first + tl.arange(0, PART), elements, inverse_scale, rate, root,
                    beta1, rest1, beta2, rest2, eps, False,
                )  # fmt: skip
    # Whoever takes the last ticket knows that every program has read its step counter.
    tl.debug_barrier()
    if tl.atomic_add(counters_ptr, 1) == tl.num_programs(0) - 1:
        tl.store(counters_ptr, 0)
        if good:
            for first in range(0, TENSORS, 32):
                tensor = first + tl.arange(0, 32)
                ok = tensor < TENSORS
                address = tl.load(table_ptr + tensor * FIELDS + 4, mask=ok, other=0)
                step_ptrs = address.to(tl.pointer_type(tl.float32))
                tl.store(step_ptrs, tl.load(step_ptrs, mask=ok, other=0.0) + 1.0, mask=ok)
        else:
            tl.store(counters_ptr + 1, tl.load(counters_ptr + 1) + counted)


@triton.jit
def overflow_kernel(
    table_ptr,  # int64: (TENSORS, FIELDS), then (CHUNKS): see `slots.AddressTable`
    problems_ptr,  # int32 (1): FLAG is set in it if a gradient is a NaN or an infinity
    TENSORS, CHUNKS,
    FLAG: tl.constexpr, FIELDS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Look through all gradients. Grid: (chunks of all tensors, or 1 if there are none,)."""
    if tl.program_id(0) < CHUNKS:
        place = tl.load(table_ptr + TENSORS * FIELDS + tl.program_id(0))
        entry = table_ptr + (place >> 32) * FIELDS
        at = (place & 0xFFFFFFFF) * CHUNK + tl.arange(0, CHUNK)
        g_at, elements, kind = tl.load(entry + 1), tl.load(entry + 6), tl.load(entry + 7)
        g = _load_gradient(g_at, at, elements, kind, False)
        wrong = ((tl.abs(g) < float("inf")) == 0).to(tl.int32)
        if tl.max(wrong, axis=0) != 0:
            tl.atomic_or(problems_ptr, FLAG)
