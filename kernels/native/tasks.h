// The arguments of each operation: plain pointers and sizes, which the bindings have checked. An
// operation (operations.h) cuts its task into pieces of fixed size, and a kernel (kernels.h)
// computes one piece.
#pragma once

#include <cstdint>

namespace fastinfogan {

using Index = std::int64_t;

struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};
enum class Dtype { float32, bfloat16, float16 };

constexpr Index size_of(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 2; }

// act(z), with the numbers that Python passes. ReLU is `leaky_relu` with slope 0.
enum class Activation { none = 0, leaky_relu = 1, sigmoid = 2, tanh = 3 };

// One batch of noise and codes (fastinfogan.latents.LatentSpec.draw and .generator_input).
struct CodesTask {
  std::uint64_t seed;
  std::uint32_t step, stream, first_row;
  Index rows, noise_size;
  bool normal;                        // noise from N(0, 1), else U(-1, 1)
  Index categorical, continuous;      // how many codes of each kind
  const std::uint32_t* class_counts;  // (categorical,)
  Index width;                        // noise_size + all classes + continuous
  void* generator_input;              // (rows, width) of dtype: noise | one-hots | continuous
  Dtype dtype;
  std::int64_t* classes;    // (rows, categorical)
  float* continuous_codes;  // (rows, continuous)
};

// Where one code is in Q's output: a row of the table that objective/code_layout.py makes.
struct Code {
  enum Kind : std::int32_t { categorical = 0, continuous = 1, unit_deviation = 2 };
  std::int32_t kind;
  std::int32_t column;  // of the first logit, or of the mean
  std::int32_t width;   // classes, or the column of the raw log-deviation
  std::int32_t index;   // column in `classes` or in `continuous`
};

struct LikelihoodTask {
  Index rows, width, codes;
  const void* output;  // (rows, width) of dtype
  Dtype dtype;
  const std::int64_t* classes;  // (rows, categorical)
  Index categorical;
  const float* continuous_codes;  // (rows, continuous)
  Index continuous;
  const Code* table;       // (codes,)
  const float* bounds;     // (codes, 2): low and high end of the log-deviation
  const float* scales;     // (codes,): what the gradient is multiplied by
  float* row_values;       // (rows, codes) or null
  float* values;           // (codes,): means over the rows
  void* gradient;          // (rows, width) of dtype
  std::int32_t* counters;  // (2,), added to: classes out of range, non-finite rows
};

// D's losses from logits: softplus(-logit) where the target is 1, softplus(logit) where it is 0.
struct AdversarialTask {
  Index rows, groups;
  const float* logits;          // (rows,)
  float* gradient;              // (rows,)
  const std::int32_t* targets;  // (groups,)
  float scale;
  float* losses;           // (groups,): means over the group's rows
  std::int32_t* counters;  // (1,), added to: non-finite logits
};

// logits = features @ weight + bias
struct HeadTask {
  Index rows, features;
  const void* input;  // (rows, features) of dtype
  Dtype dtype;
  const void* weight;  // (features,) of weight_dtype: dtype or float32
  Dtype weight_dtype;
  float bias;
  float* logits;  // (rows,)
};

// One parameter of the network in memory order.
struct AdamTask {
  Index size;
  float* parameter;
  const void* gradient;
  Dtype gradient_dtype;
  float *exp_avg, *exp_avg_sq;
  void* working_copy;  // or null
  Dtype copy_dtype;
};
struct AdamStep {
  float step_size;       // lr / (1 - beta1^t)
  float decay1, decay2;  // 1 - beta1, 1 - beta2
  float beta2;
  float root_correction;  // 1 / sqrt(1 - beta2^t)
  float eps;
  float gradient_divisor;  // 1: none
  bool stream_copies;      // write the working copies past the caches
};

// A feature map y of (groups * rows, channels): the rows of a group are the pixels of its images.
struct StatisticsTask {
  Index groups, rows, channels;
  const void* y;
  Dtype dtype;
  double eps;
  float *mean, *rstd, *variance;  // (groups, channels)
};

struct ApplyTask {
  Index groups, rows, channels;
  const void* y;
  void* out;
  Dtype dtype;
  const float *scale, *shift;  // (groups, channels), or both null
  Activation activation;
  float slope;
};

struct NormGradientTask {
  Index groups, rows, channels;
  const void *dout, *y;
  void* dy;  // or null
  Dtype dtype;
  const float *scale, *shift, *mean, *rstd;  // (groups, channels)
  const float* gamma;                        // (channels,)
  Activation activation;
  float slope;
  float *dgamma, *dbeta;  // (channels,)
};

struct ActivationGradientTask {
  Index rows, channels;
  const void *dout, *saved;  // saved: act's output if from_output, else its input
  void* dz;
  Dtype dtype;
  bool from_output;
  Activation activation;
  float slope;
  float* dbias;  // (channels,) or null
};

}  // namespace fastinfogan
