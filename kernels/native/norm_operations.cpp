// Batch norm and activations. Sums over a feature map are float32 within a tile of kTileRows rows
// and float64 across tiles.
#include <algorithm>
#include <cmath>
#include <vector>

#include "instruction_sets.h"
#include "operations.h"
#include "parallel.h"

namespace fastinfogan {
namespace {

// The tiles of a feature map (groups * rows, channels); a chunk is a tile's rows, of one group.
struct Tiles {
  Index groups, rows, channels;
  Index row_chunks = pieces_of(rows, kTileRows);
  Index channel_tiles = pieces_of(channels, kTileChannels);

  Index chunks() const { return groups * row_chunks; }
  Index count() const { return chunks() * channel_tiles; }
  Index elements() const { return groups * rows * channels; }
  Index chunk(Index i) const { return i / channel_tiles; }
  Index rows_of(Index chunk) const {
    return std::min<Index>(kTileRows, rows - (chunk % row_chunks) * kTileRows);
  }
  Tile operator[](Index i) const {
    const Index c = chunk(i), group = c / row_chunks;
    const Index channel = (i % channel_tiles) * kTileChannels;
    return {group,   group * rows + (c % row_chunks) * kTileRows,        rows_of(c),
            channel, std::min<Index>(kTileChannels, channels - channel), channels};
  }
  // Where tile i has its sums in (chunks, channels).
  Index offset(const Tile& tile, Index i) const { return chunk(i) * channels + tile.first_channel; }
};

// Calls function(tile, offset) for each tile; offset: of its sums.
template <typename Function>
void for_tiles(const Tiles& tiles, Order order, Function function) {
  const auto call = [&](Index i) {
    const Tile tile = tiles[i];
    function(tile, tiles.offset(tile, i));
  };
  for_pieces(tiles.count(), tiles.elements(), call, order);
}

// Calls function(first, last) for ranges of channels.
template <typename Function>
void for_channels(const Tiles& tiles, Function function) {
  for_pieces(tiles.channel_tiles, tiles.chunks() * tiles.channels, [&](Index i) {
    function(i * kTileChannels, std::min(tiles.channels, (i + 1) * kTileChannels));
  });
}

// sums[c] += weight * values[c] over a range of channels, in float64.
void accumulate(const float* __restrict values, double weight, Index n, double* __restrict sums) {
  for (Index c = 0; c < n; ++c) sums[c] += weight * static_cast<double>(values[c]);
}

template <typename Kernel, typename Task>
void for_elements(Kernel kernel, const Task& task, Index size) {
  constexpr Index piece = 16384;  // a multiple of every vector width
  for_pieces(pieces_of(size, piece), size,
             [&](Index i) { kernel(task, i * piece, std::min(size, (i + 1) * piece)); });
}

}  // namespace

// Merges (mean, M2) of the chunks: M2 = sum M2_k + sum n_k (mean_k - mean)^2 (Chan et al. 1979).
void norm_statistics(const StatisticsTask& task) {
  const Tiles tiles{task.groups, task.rows, task.channels};
  std::vector<float> means(tiles.chunks() * task.channels), m2s(tiles.chunks() * task.channels);
  const Kernels& table = kernels();
  for_tiles(tiles, Order::descending, [&](const Tile& tile, Index offset) {
    table.statistics(task, tile, means.data() + offset, m2s.data() + offset);
  });
  const auto count = static_cast<double>(task.rows);
  for_channels(tiles, [&](Index first, Index last) {
    const Index n = last - first;
    for (Index group = 0; group < task.groups; ++group) {
      double mean[kTileChannels] = {}, m2[kTileChannels] = {};
      const Index begin = group * tiles.row_chunks, end = begin + tiles.row_chunks;
      for (Index chunk = begin; chunk < end; ++chunk) {
        accumulate(means.data() + chunk * task.channels + first,
                   static_cast<double>(tiles.rows_of(chunk)) / count, n, mean);
      }
      for (Index chunk = begin; chunk < end; ++chunk) {
        const auto weight = static_cast<double>(tiles.rows_of(chunk));
        const float* chunk_mean = means.data() + chunk * task.channels + first;
        const float* chunk_m2 = m2s.data() + chunk * task.channels + first;
        for (Index c = 0; c < n; ++c) {
          const double d = static_cast<double>(chunk_mean[c]) - mean[c];
          m2[c] += static_cast<double>(chunk_m2[c]) + weight * d * d;
        }
      }
      for (Index c = 0; c < n; ++c) {
        const Index place = group * task.channels + first + c;
        const double variance = m2[c] / count;
        task.mean[place] = static_cast<float>(mean[c]);
        task.variance[place] = static_cast<float>(variance);
        task.rstd[place] = static_cast<float>(1.0 / std::sqrt(variance + task.eps));
      }
    }
  });
}

void norm_apply(const ApplyTask& task) {
  const Kernels& table = kernels();
  const Tiles tiles{task.groups, task.rows, task.channels};
  if (!task.scale) return for_elements(table.activation, task, tiles.elements());
  for_tiles(tiles, Order::ascending, [&](const Tile& tile, Index) { table.apply(task, tile); });
}

void norm_gradient(const NormGradientTask& task) {
  const Tiles tiles{task.groups, task.rows, task.channels};
  const Index plane = task.groups * task.channels;
  std::vector<float> sums_g(tiles.chunks() * task.channels),
      sums_gy(tiles.chunks() * task.channels);
  std::vector<float> factors(3 * plane);  // factor, offset, slant: see norm.h
  const Kernels& table = kernels();
  for_tiles(tiles, Order::descending, [&](const Tile& tile, Index offset) {
    table.gradient_sums(task, tile, sums_g.data() + offset, sums_gy.data() + offset);
  });
  const auto count = static_cast<double>(task.rows);
  for_channels(tiles, [&](Index first, Index last) {
    const Index n = last - first;
    double dgamma[kTileChannels] = {}, dbeta[kTileChannels] = {};
    for (Index group = 0; group < task.groups; ++group) {
      double sum_g[kTileChannels] = {}, sum_gy[kTileChannels] = {};
      for (Index k = 0; k < tiles.row_chunks; ++k) {
        const Index place = (group * tiles.row_chunks + k) * task.channels + first;
        accumulate(sums_g.data() + place, 1.0, n, sum_g);
        accumulate(sums_gy.data() + place, 1.0, n, sum_gy);
      }
      for (Index c = 0; c < n; ++c) {
        const Index place = group * task.channels + first + c;
        const auto rstd = static_cast<double>(task.rstd[place]);
        dbeta[c] += sum_g[c];
        dgamma[c] += sum_gy[c] * rstd;
        const double factor = static_cast<double>(task.gamma[first + c]) * rstd;
        factors[place] = static_cast<float>(factor);
        factors[plane + place] = static_cast<float>(-factor * sum_g[c] / count);
        factors[2 * plane + place] = static_cast<float>(-factor * rstd * rstd * sum_gy[c] / count);
      }
    }
    for (Index c = 0; c < n; ++c) {
      task.dgamma[first + c] = static_cast<float>(dgamma[c]);
      task.dbeta[first + c] = static_cast<float>(dbeta[c]);
    }
  });
  if (!task.dy) return;
  for_tiles(tiles, Order::ascending,
            [&](const Tile& tile, Index) { table.gradient(task, factors.data(), tile); });
}

void activation_gradient(const ActivationGradientTask& task) {
  const Kernels& table = kernels();
  if (!task.dbias) return for_elements(table.activation_gradient, task, task.rows * task.channels);
  // Few channels would leave most lanes idle: `fold` rows side by side are one row of a wider
  // matrix.
  Index fold = 1;
  while (task.channels * fold < kTileChannels / 2) fold *= 2;
  const Index wide = task.channels * fold, wide_rows = task.rows / fold;
  const Tiles body{1, wide_rows, wide};
  const Tiles rest{1, task.rows % fold, task.channels};
  std::vector<float> sums(body.chunks() * wide + rest.chunks() * task.channels);
  for_tiles(body, Order::ascending, [&](const Tile& tile, Index offset) {
    table.bias_gradient(task, tile, sums.data() + offset);
  });
  float* rest_sums = sums.data() + body.chunks() * wide;
  for (Index i = 0; i < rest.count(); ++i) {
    Tile tile = rest[i];
    const Index offset = rest.offset(tile, i);
    tile.first_row += wide_rows * fold;
    table.bias_gradient(task, tile, rest_sums + offset);
  }
  std::vector<double> total(task.channels);
  for (Index k = 0; k < body.chunks() * fold; ++k) {
    accumulate(sums.data() + k * task.channels, 1.0, task.channels, total.data());
  }
  for (Index k = 0; k < rest.chunks(); ++k) {
    accumulate(rest_sums + k * task.channels, 1.0, task.channels, total.data());
  }
  for (Index c = 0; c < task.channels; ++c) task.dbias[c] = static_cast<float>(total[c]);
}

}  // namespace fastinfogan
