// The table of leaves: each computes one piece of a task, in one thread, with one instruction set.
// leaves.cpp is compiled once per instruction set and fills in one table each time.
#pragma once

#include "tasks.h"

namespace fastinfogan {

// Rows and channels of a map that one leaf treats; `stride` is from row to row.
struct Tile {
  Index group, first_row, rows, first_channel, channels, stride;
};
constexpr int kTileRows = 128;
constexpr int kTileChannels = 256;
// The widest vector of any instruction set, in floats: how far scratch must reach past its end.
constexpr int kMaxLanes = 16;

struct Leaves {
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
                     std::int32_t* problems);
  void (*head)(const HeadTask&, Index first, Index last);
  double (*adversarial)(const AdversarialTask&, Index first, Index last, bool real, float factor,
                        std::int32_t* problems);

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
extern const Leaves leaves;
}
#if FASTINFOGAN_X86
namespace avx2 {
extern const Leaves leaves;
}
namespace avx512 {
extern const Leaves leaves;
}
#endif

}  // namespace fastinfogan
