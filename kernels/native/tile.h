// Walking a tile of a map (rows, channels): strips of kStrip rows, each a vector of channels at a
// time, so that per-channel numbers are loaded once for kStrip rows and memory is read in runs as
// long as the tile is wide.
#pragma once

#include "leaves.h"
#include "simd.h"

namespace fastinfogan::FASTINFOGAN_ISA {

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

}  // namespace fastinfogan::FASTINFOGAN_ISA
