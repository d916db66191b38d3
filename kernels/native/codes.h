// Noise and codes: Philox words, and G's input and Q's targets made of them.
#pragma once

#include "philox.h"

namespace fastinfogan::FASTINFOGAN_ISA {

inline void set_one(float* p) { *p = 1.0f; }
inline void set_one(BFloat16* p) { p->bits = 0x3F80; }
inline void set_one(Float16* p) { p->bits = 0x3C00; }

// (rows, columns) words, row-major; scratch: 4 * (ceil(columns / 4) + kLanes) words.
inline void words(std::uint64_t seed, std::uint32_t step, std::uint32_t stream,
                  std::uint32_t first_row, Index rows, Index columns, std::uint32_t* scratch,
                  std::uint32_t* out) {
  const Index blocks = (columns + 3) / 4;
  for (Index row = 0; row < rows; ++row) {
    philox::fill(seed, step, stream, first_row + static_cast<std::uint32_t>(row), 1, blocks,
                 scratch);
    __builtin_memcpy(out + row * columns, scratch, static_cast<std::size_t>(columns) * 4);
  }
}

template <typename Function>
inline void map_words(const std::uint32_t* drawn, Index size, float* out, Function function) {
  Index i = 0;
  for (; i + kLanes <= size; i += kLanes) store(out + i, function(read<Words>(drawn + i)));
  if (i == size) return;
  std::uint32_t lanes[kLanes] = {};
  __builtin_memcpy(lanes, drawn + i, static_cast<std::size_t>(size - i) * 4);
  store(out + i, function(read<Words>(lanes)), size - i);
}
inline void uniform(const std::uint32_t* drawn, Index size, float* out) {
  map_words(drawn, size, out, [](Words w) { return philox::uniform(w); });
}
inline void normal(const std::uint32_t* drawn, Index size, float* out) {
  map_words(drawn, size, out, [](Words w) { return philox::normal(w); });
}
inline void below(const std::uint32_t* drawn, Index size, std::uint32_t bound, std::int64_t* out) {
  for (Index i = 0; i < size; ++i) out[i] = philox::below(drawn[i], bound);
}

// Rows first .. last - 1. A row takes one word per noise number, per categorical and per continuous
// code. scratch: (last - first) * row_words(task) + 4 * kLanes words.
template <typename T>
inline void draw_rows(const CodesTask& task, Index first, Index last, std::uint32_t* scratch) {
  const Index blocks = (task.noise_size + task.categorical + task.continuous + 3) / 4;
  philox::fill(task.seed, task.step, task.stream,
               task.first_row + static_cast<std::uint32_t>(first), last - first, blocks, scratch);
  for (Index row = first; row < last; ++row) {
    const std::uint32_t* drawn = scratch + (row - first) * 4 * blocks;
    T* out = static_cast<T*>(task.generator_input) + row * task.width;
    // Lanes past the noise are drawn from whatever follows in scratch, and not stored.
    for (Index i = 0; i < task.noise_size; i += kLanes) {
      const Words w = read<Words>(drawn + i);
      store(out + i, task.normal ? philox::normal(w) : philox::uniform(w), task.noise_size - i);
    }
    drawn += task.noise_size;
    out += task.noise_size;
    const Index one_hots = task.width - task.noise_size - task.continuous;
    __builtin_memset(out, 0, static_cast<std::size_t>(one_hots) * sizeof(T));
    for (Index i = 0; i < task.categorical; ++i) {
      const std::uint32_t k = philox::below(drawn[i], task.class_counts[i]);
      task.classes[row * task.categorical + i] = k;
      set_one(out + k);
      out += task.class_counts[i];
    }
    drawn += task.categorical;
    for (Index i = 0; i < task.continuous; i += kLanes) {
      const Floats x = philox::uniform(read<Words>(drawn + i));
      store(out + i, x, task.continuous - i);
      store(task.continuous_codes + row * task.continuous + i, x, task.continuous - i);
    }
  }
}

}  // namespace fastinfogan::FASTINFOGAN_ISA
