// act(z) and its derivative, for layers without batch norm.
#pragma once

#include "simd.h"

namespace fastinfogan::FASTINFOGAN_ISA {

// ReLU is apart from the leaky one: 0 times an infinity is not 0.
enum class Act { none, relu, leaky, sigmoid, tanh };

template <Act act>
inline Floats activate(Floats z, float slope) {
  if constexpr (act == Act::relu) return z < 0.0f ? Floats{} : z;
  if constexpr (act == Act::leaky) return z > 0.0f ? z : z * slope;
  if constexpr (act == Act::sigmoid) return sigmoid(z);
  if constexpr (act == Act::tanh) return tanh(z);
  return z;
}

// dout * act'(z), from act(z). The output of (leaky) ReLU has its input's sign.
template <Act act>
inline Floats backward_from_output(Floats dout, Floats out, float slope) {
  if constexpr (act == Act::relu) return out > 0.0f ? dout : Floats{};
  if constexpr (act == Act::leaky) return out > 0.0f ? dout : dout * slope;
  if constexpr (act == Act::sigmoid) return dout * (out * (1.0f - out));
  if constexpr (act == Act::tanh) return dout * (1.0f - out * out);
  return dout;
}
template <Act act>
inline Floats backward_from_input(Floats dout, Floats z, float slope) {
  if constexpr (act == Act::sigmoid || act == Act::tanh) {
    return backward_from_output<act>(dout, activate<act>(z, slope), slope);
  }
  return backward_from_output<act>(dout, z, slope);
}

template <Act a>
struct ActConstant {
  static constexpr Act value = a;
};

// Calls function(ActConstant<...>) for a task's activation.
template <typename Function>
inline void by_activation(Activation activation, float slope, Function function) {
  switch (activation) {
    case Activation::none: return function(ActConstant<Act::none>{});
    case Activation::leaky_relu:
      return slope == 0.0f ? function(ActConstant<Act::relu>{})
                           : function(ActConstant<Act::leaky>{});
    case Activation::sigmoid: return function(ActConstant<Act::sigmoid>{});
    case Activation::tanh: return function(ActConstant<Act::tanh>{});
  }
}

// out[i] = act(y[i]), i from first to last - 1.
template <typename T, Act act>
inline void activation_elements(const ApplyTask& task, Index first, Index last) {
  const T* y = static_cast<const T*>(task.y);
  T* out = static_cast<T*>(task.out);
  for (Index i = first; i < last; i += kLanes) {
    store(out + i, activate<act>(load(y + i, last - i), task.slope), last - i);
  }
}

template <typename T, Act act, bool from_output>
inline void activation_gradient_elements(const ActivationGradientTask& task, Index first,
                                         Index last) {
  const T* dout = static_cast<const T*>(task.dout);
  const T* saved = static_cast<const T*>(task.saved);
  T* dz = static_cast<T*>(task.dz);
  for (Index i = first; i < last; i += kLanes) {
    const Floats g = load(dout + i, last - i), x = load(saved + i, last - i);
    store(dz + i,
          from_output ? backward_from_output<act>(g, x, task.slope)
                      : backward_from_input<act>(g, x, task.slope),
          last - i);
  }
}

}  // namespace fastinfogan::FASTINFOGAN_ISA
