#include "operations.h"

#include <algorithm>
#include <cmath>

#include "instruction_sets.h"
#include "parallel.h"

namespace fastinfogan {

std::array<std::uint32_t, 4> encrypt(const std::array<std::uint32_t, 4>& counter, std::uint32_t k0,
                                     std::uint32_t k1, int rounds) {
  std::array<std::uint32_t, 4> out;
  kernels().encrypt(counter.data(), k0, k1, rounds, out.data());
  return out;
}

void words(std::uint64_t seed, std::uint32_t step, std::uint32_t stream, std::uint32_t first_row,
           Index rows, Index columns, std::uint32_t* out) {
  if (rows == 0 || columns == 0) return;
  std::vector<std::uint32_t> scratch(4 * (pieces_of(columns, 4) + kMaxLanes));
  kernels().words(seed, step, stream, first_row, rows, columns, scratch.data(), out);
}

void draw_codes(const CodesTask& task) {
  constexpr Index rows = 16;
  const Index row_words = 4 * pieces_of(task.noise_size + task.categorical + task.continuous, 4);
  const Index scratch_size = rows * row_words + 4 * kMaxLanes;
  std::vector<std::uint32_t> scratch(scratch_size * max_threads());
  const Kernels& table = kernels();
  for_pieces(pieces_of(task.rows, rows), task.rows * row_words, [&](Index i) {
    table.draw_codes(task, i * rows, std::min(task.rows, (i + 1) * rows),
                     scratch.data() + thread_index() * scratch_size);
  });
}

void q_head_log_likelihood(const LikelihoodTask& task) {
  constexpr Index rows = 64;
  const Index pieces = pieces_of(task.rows, rows);
  const Index scratch_size = (3 * task.width + 1) * kMaxLanes;
  std::vector<float> scratch(scratch_size * max_threads());
  std::vector<double> sums(pieces * task.codes);
  std::vector<std::int32_t> counters(pieces * 2);
  const Kernels& table = kernels();
  for_pieces(pieces, task.rows * task.width, [&](Index i) {
    table.likelihood(task, i * rows, std::min(task.rows, (i + 1) * rows),
                     scratch.data() + thread_index() * scratch_size, sums.data() + i * task.codes,
                     counters.data() + 2 * i);
  });
  for (Index i = 0; i < pieces; ++i) {
    task.counters[0] += counters[2 * i];
    task.counters[1] += counters[2 * i + 1];
  }
  for (Index code = 0; code < task.codes; ++code) {
    double total = 0.0;
    for (Index i = 0; i < pieces; ++i) total += sums[i * task.codes + code];
    task.values[code] = static_cast<float>(total / static_cast<double>(task.rows));
  }
}

void adversarial_losses(const AdversarialTask& task) {
  constexpr Index rows = 4096;
  const Index group_rows = task.rows / task.groups;
  const Index pieces = pieces_of(group_rows, rows);
  std::vector<double> sums(pieces * task.groups);
  std::vector<std::int32_t> counters(pieces * task.groups);
  const float factor = task.scale / static_cast<float>(group_rows);
  const Kernels& table = kernels();
  for_pieces(pieces * task.groups, task.rows, [&](Index i) {
    const Index group = i / pieces, first = (i % pieces) * rows;
    sums[i] = table.adversarial(task, group * group_rows + first,
                                group * group_rows + std::min(group_rows, first + rows),
                                task.targets[group] != 0, factor, &counters[i]);
  });
  for (Index group = 0; group < task.groups; ++group) {
    double total = 0.0;
    for (Index i = group * pieces; i < (group + 1) * pieces; ++i) {
      total += sums[i];
      *task.counters += counters[i];
    }
    task.losses[group] = static_cast<float>(total / static_cast<double>(group_rows));
  }
}

void d_head_objective(const HeadTask& head, const AdversarialTask& losses) {
  constexpr Index rows = 16;
  const Kernels& table = kernels();
  for_pieces(pieces_of(head.rows, rows), head.rows * head.features,
             [&](Index i) { table.head(head, i * rows, std::min(head.rows, (i + 1) * rows)); });
  adversarial_losses(losses);
}

void adam(const std::vector<AdamTask>& parameters, AdamStep step) {
  constexpr Index size = 16384;  // a multiple of every vector width
  struct Piece {
    const AdamTask* parameter;
    Index first, last;
  };
  std::vector<Piece> pieces;
  Index elements = 0;
  for (const AdamTask& p : parameters) {
    elements += p.size;
    for (Index first = 0; first < p.size; first += size) {
      pieces.push_back({&p, first, std::min(p.size, first + size)});
    }
  }
  // More than caches hold: working copies written through them would only evict other data.
  step.stream_copies = elements >= Index{1} << 20;
  const Kernels& table = kernels();
  for_pieces(static_cast<Index>(pieces.size()), elements, [&](Index i) {
    table.adam(*pieces[i].parameter, step, pieces[i].first, pieces[i].last);
  });
}

}  // namespace fastinfogan
