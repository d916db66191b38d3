// The kernels of one instruction set; compiled once for each, see CMakeLists.txt.
#include "kernels.h"

#include "activation.h"
#include "adam.h"
#include "adversarial.h"
#include "codes.h"
#include "likelihood.h"
#include "norm.h"

namespace fastinfogan::FASTINFOGAN_ISA {
namespace {

// Calls function(T{}) for the C++ type of a dtype.
template <typename Function>
auto by_dtype(Dtype dtype, Function function) {
  switch (dtype) {
    case Dtype::bfloat16: return function(BFloat16{});
    case Dtype::float16: return function(Float16{});
    default: return function(float{});
  }
}

template <typename Task, typename Function>
void by_dtype_and_activation(const Task& task, Function function) {
  by_dtype(task.dtype, [&](auto t) {
    by_activation(task.activation, task.slope, [&](auto act) { function(t, act); });
  });
}

void encrypt(const std::uint32_t counter[4], std::uint32_t k0, std::uint32_t k1, int rounds,
             std::uint32_t out[4]) {
  philox::Block block;
  for (int i = 0; i < 4; ++i) block.word[i] = broadcast(counter[i]);
  block = philox::encrypt(block, k0, k1, rounds);
  for (int i = 0; i < 4; ++i) out[i] = block.word[i][0];
}

void draw_codes(const CodesTask& task, Index first, Index last, std::uint32_t* scratch) {
  by_dtype(task.dtype, [&](auto t) { draw_rows<decltype(t)>(task, first, last, scratch); });
}

void likelihood(const LikelihoodTask& task, Index first, Index last, float* scratch, double* sums,
                std::int32_t* counters) {
  by_dtype(task.dtype, [&](auto t) {
    likelihood_rows<decltype(t)>(task, first, last, scratch, sums, counters);
  });
}

void head(const HeadTask& task, Index first, Index last) {
  by_dtype(task.dtype, [&](auto t) {
    if (task.weight_dtype == Dtype::float32) {
      head_rows<decltype(t), float>(task, first, last);
    } else {
      head_rows<decltype(t), decltype(t)>(task, first, last);
    }
  });
}

void adam(const AdamTask& task, const AdamStep& step, Index first, Index last) {
  by_dtype(task.gradient_dtype, [&](auto t) {
    using G = decltype(t);
    if (!task.working_copy) return adam_elements<G, float>(task, step, first, last);
    if (task.copy_dtype == Dtype::bfloat16) {
      return adam_elements<G, BFloat16>(task, step, first, last);
    }
    adam_elements<G, Float16>(task, step, first, last);
  });
}

void statistics(const StatisticsTask& task, const Tile& tile, float* mean, float* m2) {
  by_dtype(task.dtype, [&](auto t) {
    statistics_tile(static_cast<const decltype(t)*>(task.y), tile, mean, m2);
  });
}

void apply(const ApplyTask& task, const Tile& tile) {
  by_dtype_and_activation(
      task, [&](auto t, auto act) { apply_tile<decltype(t), act.value>(task, tile); });
}

void activation(const ApplyTask& task, Index first, Index last) {
  by_dtype_and_activation(task, [&](auto t, auto act) {
    activation_elements<decltype(t), act.value>(task, first, last);
  });
}

void gradient_sums(const NormGradientTask& task, const Tile& tile, float* sum_g, float* sum_gy) {
  by_dtype_and_activation(task, [&](auto t, auto act) {
    gradient_sums_tile<decltype(t), act.value>(task, tile, sum_g, sum_gy);
  });
}

void gradient(const NormGradientTask& task, const float* factors, const Tile& tile) {
  by_dtype_and_activation(
      task, [&](auto t, auto act) { gradient_tile<decltype(t), act.value>(task, factors, tile); });
}

void activation_gradient(const ActivationGradientTask& task, Index first, Index last) {
  by_dtype_and_activation(task, [&](auto t, auto act) {
    if (task.from_output) {
      activation_gradient_elements<decltype(t), act.value, true>(task, first, last);
    } else {
      activation_gradient_elements<decltype(t), act.value, false>(task, first, last);
    }
  });
}

void bias_gradient(const ActivationGradientTask& task, const Tile& tile, float* sums) {
  by_dtype_and_activation(task, [&](auto t, auto act) {
    if (task.from_output) {
      bias_gradient_tile<decltype(t), act.value, true>(task, tile, sums);
    } else {
      bias_gradient_tile<decltype(t), act.value, false>(task, tile, sums);
    }
  });
}

#define NAME_OF(isa) #isa
#define NAME(isa) NAME_OF(isa)

}  // namespace

extern const Kernels kernels = {
    NAME(FASTINFOGAN_ISA),
    encrypt,
    words,
    uniform,
    normal,
    below,
    draw_codes,
    likelihood,
    head,
    adversarial_rows,
    adam,
    statistics,
    apply,
    activation,
    gradient_sums,
    gradient,
    activation_gradient,
    bias_gradient,
};

}  // namespace fastinfogan::FASTINFOGAN_ISA
