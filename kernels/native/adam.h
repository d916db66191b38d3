// Adam (Kingma and Ba 2015, algorithm 1, eps outside the corrected root as in torch.optim.Adam):
//   m += (1 - b1) (g - m);  v = b2 v + (1 - b2) g^2
//   p -= lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)
// One pass: with bfloat16 gradients and working copies, 14 bytes read and 14 written per parameter.
#pragma once

#include "simd.h"

namespace fastinfogan::FASTINFOGAN_ISA {

// In elements; by itself, the hardware does not prefetch five streams far enough.
constexpr Index kPrefetchDistance = 512;

// Elements first .. last - 1. C: type of the working copy; float where there is none.
template <typename G, typename C>
inline void adam_elements(const AdamTask& task, const AdamStep& step, Index first, Index last) {
  const G* gradients = static_cast<const G*>(task.gradient);
  C* copy = static_cast<C*>(task.working_copy);
  const auto update = [&](Index i, auto n) {
    Floats g = load(gradients + i, n);
    if (step.gradient_divisor != 1.0f) g = g / step.gradient_divisor;
    const Floats m = load(task.exp_avg + i, n), v = load(task.exp_avg_sq + i, n);
    const Floats new_m = fma(g - m, broadcast(step.decay1), m);
    const Floats new_v = fma(g * g, broadcast(step.decay2), v * step.beta2);
    const Floats root = fma(sqrt(new_v), broadcast(step.root_correction), broadcast(step.eps));
    const Floats p = fma(new_m / root, broadcast(-step.step_size), load(task.parameter + i, n));
    store(task.exp_avg + i, new_m, n);
    store(task.exp_avg_sq + i, new_v, n);
    store(task.parameter + i, p, n);
    return p;
  };
  bool streaming = false;
  if constexpr (sizeof(C) == 2) streaming = step.stream_copies && can_stream(copy + first);
  Index i = first;
  for (; i + kLanes <= last; i += kLanes) {
    __builtin_prefetch(task.parameter + i + kPrefetchDistance);
    __builtin_prefetch(task.exp_avg + i + kPrefetchDistance);
    __builtin_prefetch(task.exp_avg_sq + i + kPrefetchDistance);
    __builtin_prefetch(gradients + i + kPrefetchDistance);
    const Floats p = update(i, Fixed<kLanes>{});
    if constexpr (sizeof(C) == 2) {
      if (streaming) {
        stream(copy + i, p);
      } else {
        store(copy + i, p);
      }
    }
  }
  if (i < last) {
    const Floats p = update(i, last - i);
    if constexpr (sizeof(C) == 2) store(copy + i, p, last - i);
  }
  if (streaming) end_stream();
}

}  // namespace fastinfogan::FASTINFOGAN_ISA
