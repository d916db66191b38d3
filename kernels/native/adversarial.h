// D's head: logits = features @ weight + bias, and the two losses with their gradients.
#pragma once

#include "simd.h"

namespace fastinfogan::FASTINFOGAN_ISA {

template <typename T, typename W>
inline void head_rows(const HeadTask& task, Index first, Index last) {
  const W* weight = static_cast<const W*>(task.weight);
  for (Index row = first; row < last; ++row) {
    const T* x = static_cast<const T*>(task.input) + row * task.features;
    Floats sums[4] = {};
    Index k = 0;
    for (; k + 4 * kLanes <= task.features; k += 4 * kLanes) {
      for (int u = 0; u < 4; ++u) {
        sums[u] = fma(load(x + k + u * kLanes), load(weight + k + u * kLanes), sums[u]);
      }
    }
    for (; k < task.features; k += kLanes) {
      sums[0] = fma(load(x + k, task.features - k), load(weight + k, task.features - k), sums[0]);
    }
    task.logits[row] = sum((sums[0] + sums[1]) + (sums[2] + sums[3])) + task.bias;
  }
}

// Rows first .. last - 1, all of one group; returns the sum of their losses.
// d softplus(-l)/dl = -sigmoid(-l) and d softplus(l)/dl = sigmoid(l).
inline double adversarial_rows(const AdversarialTask& task, Index first, Index last, bool real,
                               float factor, std::int32_t* counters) {
  double total = 0.0;
  for (Index row = first; row < last; row += kLanes) {
    const Index n = last - row < kLanes ? last - row : kLanes;
    const Floats logit = load(task.logits + row, n);
    const Softplus loss = softplus(real ? -logit : logit);
    store(task.gradient + row, loss.derivative * (real ? -factor : factor), n);
    const Floats zero_if_finite = logit * 0.0f;
    for (Index i = 0; i < n; ++i) {
      total += static_cast<double>(loss.value[i]);
      *counters += zero_if_finite[i] != 0.0f;
    }
  }
  return total;
}

}  // namespace fastinfogan::FASTINFOGAN_ISA
