// Log-likelihood of the codes under Q and its gradient: kLanes rows at once, one lane each.
//
//   categorical: l = x_k - ln sum_j e^x_j                      dl/dx_j = [j = k] - softmax_j
//   continuous:  l = -ln(2 pi)/2 - s - d^2/2, d = (c - mean) e^-s, s = clip(raw)
//                dl/dmean = d e^-s,  dl/draw = d^2 - 1 where low <= raw <= high, else 0
#pragma once

#include "simd.h"

namespace fastinfogan::FASTINFOGAN_ISA {

inline Floats categorical_log_likelihood(const Code& code, const LikelihoodTask& task, Index row,
                                         int rows, float scale, const float* x, float* gradient,
                                         std::int32_t* counters) {
  x += code.column * kLanes;
  gradient += code.column * kLanes;
  Floats largest = load(x);
  for (int j = 1; j < code.width; ++j) {
    const Floats logit = load(x + j * kLanes);
    largest = logit > largest ? logit : largest;
  }
  // In runs of 32, so that the sum of a thousand classes stays accurate.
  Floats total{};
  for (int first = 0; first < code.width; first += 32) {
    Floats run{};
    for (int j = first; j < code.width && j < first + 32; ++j) {
      const Floats e = exp(load(x + j * kLanes) - largest);
      store(gradient + j * kLanes, e);
      run += e;
    }
    total += run;
  }
  Floats factor = -scale / total;
  float chosen[kLanes] = {};
  std::int64_t k[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    k[i] = i < rows ? task.classes[(row + i) * task.categorical + code.index] : 0;
    if (k[i] < 0 || k[i] >= code.width) {
      ++counters[0];
      k[i] = 0;
      chosen[i] = __builtin_nanf("");
      factor[i] = __builtin_nanf("");
    } else {
      chosen[i] = x[k[i] * kLanes + i];
    }
  }
  for (int j = 0; j < code.width; ++j) {
    store(gradient + j * kLanes, load(gradient + j * kLanes) * factor);
  }
  for (int i = 0; i < kLanes; ++i) gradient[k[i] * kLanes + i] += scale;
  return (load(chosen) - largest) - log(total);
}

inline Floats continuous_log_likelihood(const Code& code, const LikelihoodTask& task, Index row,
                                        int rows, float low, float high, float scale,
                                        const float* x, float* gradient) {
  constexpr float half_log_two_pi = 0.918938533f;
  float targets[kLanes] = {};
  for (int i = 0; i < rows; ++i) {
    targets[i] = task.continuous_codes[(row + i) * task.continuous + code.index];
  }
  const Floats deviation = load(targets) - load(x + code.column * kLanes);
  if (code.kind == Code::unit_deviation) {
    store(gradient + code.column * kLanes, deviation * scale);
    return -0.5f * deviation * deviation - half_log_two_pi;
  }
  const Floats raw = load(x + code.width * kLanes);
  const Floats clipped = raw < low ? broadcast(low) : (raw > high ? broadcast(high) : raw);
  const Floats inverse = exp(-clipped);
  const Floats d = deviation * inverse;
  const Floats square = d * d;
  const Floats outside = (Floats)((Words)(raw < low) | (Words)(raw > high));
  const Floats slope = (square - 1.0f) * scale;
  store(gradient + code.column * kLanes, d * inverse * scale);
  store(gradient + code.width * kLanes, (Floats)((Words)slope & ~(Words)outside));
  return -0.5f * square - clipped - half_log_two_pi;
}

// Rows first .. last - 1; sums: (codes,), added to. scratch: (3 * width + 1) * kLanes floats.
template <typename T>
inline void likelihood_rows(const LikelihoodTask& task, Index first, Index last, float* scratch,
                            double* sums, std::int32_t* counters) {
  const Index width = task.width;
  float* x = scratch;                       // (width, kLanes)
  float* gradient = x + width * kLanes;     // (width, kLanes)
  float* line = gradient + width * kLanes;  // (width,), and the vector that ends in it
  const T* output = static_cast<const T*>(task.output);
  T* gradient_out = static_cast<T*>(task.gradient);
  for (Index row = first; row < last; row += kLanes) {
    const int rows = last - row < kLanes ? static_cast<int>(last - row) : kLanes;
    if (rows < kLanes) __builtin_memset(x, 0, static_cast<std::size_t>(width) * 4 * kLanes);
    for (int i = 0; i < rows; ++i) {
      for (Index c = 0; c < width; c += kLanes) {
        store(line + c, load(output + (row + i) * width + c, width - c));
      }
      for (Index c = 0; c < width; ++c) x[c * kLanes + i] = line[c];
    }
    __builtin_memset(gradient, 0, static_cast<std::size_t>(width) * 4 * kLanes);
    Floats zero_if_finite{};
    for (Index c = 0; c < width; ++c) zero_if_finite += load(x + c * kLanes) * 0.0f;
    for (int i = 0; i < kLanes; ++i) counters[1] += zero_if_finite[i] != 0.0f;

    for (Index code = 0; code < task.codes; ++code) {
      const Code& layout = task.table[code];
      const float scale = task.scales[code];
      const Floats value =
          layout.kind == Code::categorical
              ? categorical_log_likelihood(layout, task, row, rows, scale, x, gradient, counters)
              : continuous_log_likelihood(layout, task, row, rows, task.bounds[2 * code],
                                          task.bounds[2 * code + 1], scale, x, gradient);
      for (int i = 0; i < rows; ++i) {
        sums[code] += static_cast<double>(value[i]);
        if (task.row_values) task.row_values[(row + i) * task.codes + code] = value[i];
      }
    }
    for (int i = 0; i < rows; ++i) {
      for (Index c = 0; c < width; ++c) line[c] = gradient[c * kLanes + i];
      for (Index c = 0; c < width; c += kLanes) {
        store(gradient_out + (row + i) * width + c, load(line + c), width - c);
      }
    }
  }
}

}  // namespace fastinfogan::FASTINFOGAN_ISA
