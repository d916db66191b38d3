// The table of kernels: each computes one piece of a task, in one thread, with one instruction set.
// kernels.cpp is compiled once per instruction set and defines one table each time.
#pragma once

#include "tasks.h"

namespace fastinfogan {

// Rows and channels of a feature map that one kernel call computes; `stride` is from row to row.
struct Tile {
  Index group, first_row, rows, first_channel, channels, stride;
};
constexpr int kTileRows = 128;
constexpr int kTileChannels = 256;
// The widest vector of any instruction set, in floats: so much longer scratch memory must be.
constexpr int kMaxLanes = 16;

struct Kernels {
  const char* name;

  void (*encrypt)(const std::uint32_t counter[4], std::uint32_t k0, std::uint32_t k1, int rounds,
                  std::uint32_t out[4]);
  void (*words)(std::uint64_t seed, std::uint32_t step, std::uint32_t stream,
                std::uint32_t first_row, Index rows, Index columns, std::uint32_t* scratch,
                std::uint32_t* out);
  void (*uniform)(const std::uint32_t* drawn, Index size, float* out);
  void (*normal)(const std::uint32_t* drawn, Index size, float* out);
  void (*below)(const std::uint32_t* drawn, Index size, std::uint32_t bound, std::int64_t* out);
  void (*draw_codes)(const CodesTask&, Index first, Index last, std::uint32_t* scratch);

  void (*likelihood)(const LikelihoodTask&, Index first, Index last, float* scratch, double* sums,
                     std::int32_t* counters);
  void (*head)(const HeadTask&, Index first, Index last);
  double (*adversarial)(const AdversarialTask&, Index first, Index last, bool real, float factor,
                        std::int32_t* counters);

  void (*adam)(const AdamTask&, const AdamStep&, Index first, Index last);

  void (*statistics)(const StatisticsTask&, const Tile&, float* mean, float* m2);
  void (*apply)(const ApplyTask&, const Tile&);
  void (*activation)(const ApplyTask&, Index first, Index last);
  void (*gradient_sums)(const NormGradientTask&, const Tile&, float* sum_g, float* sum_gy);
  void (*gradient)(const NormGradientTask&, const float* factors, const Tile&);
  void (*activation_gradient)(const ActivationGradientTask&, Index first, Index last);
  void (*bias_gradient)(const ActivationGradientTask&, const Tile&, float* sums);
};

namespace plain {
extern const Kernels kernels;
}
#if FASTINFOGAN_X86
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

}  // namespace fastinfogan
