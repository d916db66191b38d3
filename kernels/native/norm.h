// Batch norm and the activation after it, on tiles of (rows, channels): statistics, application,
// and the two passes of the gradient. Formulas in tasks.h and above each function.
#pragma once

#include "activation.h"

namespace fastinfogan::FASTINFOGAN_ISA {

// A tile is computed in strips of kStrip rows, a vector of channels at a time: per-channel numbers
// are loaded once for kStrip rows, and memory is read in runs as long as the tile is wide.
constexpr int kStrip = 8;

// Calls function(row, rows, column, columns), with Fixed sizes except at the edges.
template <typename Function>
inline void for_strips(const Tile& tile, Function function) {
  Index row = 0;
  for (; row + kStrip <= tile.rows; row += kStrip) {
    Index column = 0;
    for (; column + kLanes <= tile.channels; column += kLanes) {
      function(row, Fixed<kStrip>{}, column, Fixed<kLanes>{});
    }
    if (column < tile.channels) function(row, Fixed<kStrip>{}, column, tile.channels - column);
  }
  if (row == tile.rows) return;
  for (Index column = 0; column < tile.channels; column += kLanes) {
    const Index left = tile.channels - column;
    function(row, tile.rows - row, column, left < kLanes ? left : kLanes);
  }
}

// mean and M2 = sum (y - mean)^2 of a tile of at most kTileRows rows and kTileChannels channels.
// Sums of y less the tile's first row: exact differences where the mean is large and the deviation
// small. Out: (tile.channels,) each.
template <typename T>
inline void statistics_tile(const T* y, const Tile& tile, float* mean, float* m2) {
  float shift[kTileChannels], total[kTileChannels] = {}, squares[kTileChannels] = {};
  y += tile.first_row * tile.stride + tile.first_channel;
  for (Index c = 0; c < tile.channels; c += kLanes) {
    store(shift + c, load(y + c, tile.channels - c));
  }
  for_strips(tile, [&](Index row, auto rows, Index c, auto n) {
    const T* p = y + row * tile.stride + c;
    const Floats origin = load(shift + c);
    Floats sum1{}, sum2{};
    for (Index r = 0; r < rows; ++r) {
      const Floats d = load(p + r * tile.stride, n) - origin;
      sum1 += d;
      sum2 = fma(d, d, sum2);
    }
    store(total + c, load(total + c) + sum1);
    store(squares + c, load(squares + c) + sum2);
  });
  const float inverse = 1.0f / static_cast<float>(tile.rows);
  for (Index c = 0; c < tile.channels; c += kLanes) {
    const Floats d = load(total + c) * inverse;
    const Floats square = load(squares + c) - load(total + c) * d;
    store(mean + c, load(shift + c) + d, tile.channels - c);
    store(m2 + c, square < 0.0f ? Floats{} : square, tile.channels - c);
  }
}

// out = act(scale * y + shift)
template <typename T, Act act>
inline void apply_tile(const ApplyTask& task, const Tile& tile) {
  const Index origin = tile.first_row * tile.stride + tile.first_channel;
  const T* y = static_cast<const T*>(task.y) + origin;
  T* out = static_cast<T*>(task.out) + origin;
  const float* scale = task.scale + tile.group * task.channels + tile.first_channel;
  const float* shift = task.shift + tile.group * task.channels + tile.first_channel;
  for_strips(tile, [&](Index row, auto rows, Index c, auto n) {
    const Floats a = load(scale + c, n), b = load(shift + c, n);
    for (Index r = row; r < row + rows; ++r) {
      const Index i = r * tile.stride + c;
      store(out + i, activate<act>(fma(a, load(y + i, n), b), task.slope), n);
    }
  });
}

// g = dout * act'(scale * y + shift); sums over the tile of g and of g * (y - mean).
template <typename T, Act act>
inline void gradient_sums_tile(const NormGradientTask& task, const Tile& tile, float* sum_g,
                               float* sum_gy) {
  float total_g[kTileChannels] = {}, total_gy[kTileChannels] = {};
  const Index origin = tile.first_row * tile.stride + tile.first_channel;
  const T* dout = static_cast<const T*>(task.dout) + origin;
  const T* y = static_cast<const T*>(task.y) + origin;
  const Index channel = tile.group * task.channels + tile.first_channel;
  for_strips(tile, [&](Index row, auto rows, Index c, auto n) {
    const Floats a = load(task.scale + channel + c, n), b = load(task.shift + channel + c, n);
    const Floats mean = load(task.mean + channel + c, n);
    Floats sum1{}, sum2{};
    for (Index r = row; r < row + rows; ++r) {
      const Floats x = load(y + r * tile.stride + c, n);
      const Floats g =
          backward_from_input<act>(load(dout + r * tile.stride + c, n), fma(a, x, b), task.slope);
      sum1 += g;
      sum2 = fma(g, x - mean, sum2);
    }
    store(total_g + c, load(total_g + c) + sum1);
    store(total_gy + c, load(total_gy + c) + sum2);
  });
  __builtin_memcpy(sum_g, total_g, static_cast<std::size_t>(tile.channels) * 4);
  __builtin_memcpy(sum_gy, total_gy, static_cast<std::size_t>(tile.channels) * 4);
}

// dy = factor * (g - S_g / M - (y - mean) * rstd^2 * S_gy / M) as factor * g + offset + (y - mean)
// * slant, so that nothing cancels where the mean is large; factor = gamma * rstd. factors: factor,
// offset and slant, (3, groups, channels).
template <typename T, Act act>
inline void gradient_tile(const NormGradientTask& task, const float* factors, const Tile& tile) {
  const Index origin = tile.first_row * tile.stride + tile.first_channel;
  const T* dout = static_cast<const T*>(task.dout) + origin;
  const T* y = static_cast<const T*>(task.y) + origin;
  T* dy = static_cast<T*>(task.dy) + origin;
  const Index channel = tile.group * task.channels + tile.first_channel;
  const Index plane = task.groups * task.channels;
  for_strips(tile, [&](Index row, auto rows, Index c, auto n) {
    const Floats a = load(task.scale + channel + c, n), b = load(task.shift + channel + c, n);
    const Floats mean = load(task.mean + channel + c, n);
    const Floats factor = load(factors + channel + c, n);
    const Floats offset = load(factors + plane + channel + c, n);
    const Floats slant = load(factors + 2 * plane + channel + c, n);
    for (Index r = row; r < row + rows; ++r) {
      const Index i = r * tile.stride + c;
      const Floats x = load(y + i, n);
      const Floats g = backward_from_input<act>(load(dout + i, n), fma(a, x, b), task.slope);
      store(dy + i, fma(x - mean, slant, fma(g, factor, offset)), n);
    }
  });
}

// dz = dout * act', and its sums over the tile.
template <typename T, Act act, bool from_output>
inline void bias_gradient_tile(const ActivationGradientTask& task, const Tile& tile, float* sums) {
  float total[kTileChannels] = {};
  const Index origin = tile.first_row * tile.stride + tile.first_channel;
  const T* dout = static_cast<const T*>(task.dout) + origin;
  const T* saved = static_cast<const T*>(task.saved) + origin;
  T* dz = static_cast<T*>(task.dz) + origin;
  for_strips(tile, [&](Index row, auto rows, Index c, auto n) {
    Floats sum1{};
    for (Index r = row; r < row + rows; ++r) {
      const Index i = r * tile.stride + c;
      const Floats dout_i = load(dout + i, n), x = load(saved + i, n);
      const Floats g = from_output ? backward_from_output<act>(dout_i, x, task.slope)
                                   : backward_from_input<act>(dout_i, x, task.slope);
      store(dz + i, g, n);
      sum1 += g;
    }
    store(total + c, load(total + c) + sum1);
  });
  __builtin_memcpy(sums, total, static_cast<std::size_t>(tile.channels) * 4);
}

}  // namespace fastinfogan::FASTINFOGAN_ISA
