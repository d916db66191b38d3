// Adam (Kingma and Ba 2015, algorithm 1, eps outside the corrected root as in torch.optim.Adam):
//   m += (1 - b1) (g - m);  v = b2 v + (1 - b2) g^2
//   p -= lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)
// One pass: 14 bytes read and 14 written per parameter with bfloat16 gradients and copies.
#pragma once

#include "simd.h"

namespace fastinfogan::FASTINFOGAN_ISA {

// Elements first .. last - 1. C: what the copy is made of; void without one.
template <typename G, typename C>
inline void adam_elements(const AdamTask& task, const AdamStep& step, Index first, Index last) {
  const G* gradients = static_cast<const G*>(task.gradient);
  for (Index i = first; i < last; i += kLanes) {
    const Index n = last - i;
    Floats g = load(gradients + i, n);
    if (step.gradient_divisor != 1.0f) g = g / step.gradient_divisor;
    const Floats m = load(task.exp_avg + i, n);
    const Floats v = load(task.exp_avg_sq + i, n);
    const Floats new_m = fma(g - m, broadcast(step.decay1), m);
    const Floats new_v = fma(g * g, broadcast(step.decay2), v * step.beta2);
    const Floats root = fma(sqrt(new_v), broadcast(step.root_correction), broadcast(step.eps));
    const Floats p =
        fma(new_m / root, broadcast(-step.step_size), load(task.parameter + i, n));
    store(task.exp_avg + i, new_m, n);
    store(task.exp_avg_sq + i, new_v, n);
    store(task.parameter + i, p, n);
    if constexpr (sizeof(C) == 2) store(static_cast<C*>(task.copy) + i, p, n);
  }
}

}  // namespace fastinfogan::FASTINFOGAN_ISA
