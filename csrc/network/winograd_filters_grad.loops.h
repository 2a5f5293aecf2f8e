// SPDX-License-Identifier: BSD-3-Clause
// The loops of the gradient of 3x3 filters by Winograd's F(3x3, 4x4).
#pragma once

#include <cstdint>

#include "../isa/loops.h"
#include "../isa/panel.h"

namespace fastdet::cpu {

constexpr int64_t kGradTile = 4;                           // a tile has 4x4 outputs
constexpr int64_t kGradSide = kGradTile + 2;               // and reads 6x6 inputs
constexpr int64_t kGradPositions = kGradSide * kGradSide;  // of a transformed tile
// Filters that are multiplied by a panel of channels while both are in the L1 cache.
constexpr int64_t kGradRows = 4 * kPanelRows;

// For maps of T, which is float or BFloat16. The positions of a transformed tile lie
// position_stride apart, row by row.
template <typename T>
struct FASTDET_EXPORT FiltersGradMapLoops {
  // The transforms of the channels [first, first + channels) of a tile's 6x6 inputs and of the
  // gradients of its 4x4 outputs. Whole vectors are written, from out on.
  void (*input)(const T* const* pixels, int64_t first, int64_t channels, float* out,
                int64_t position_stride);
  void (*output_grad)(const T* const* pixels, int64_t first, int64_t channels, float* out,
                      int64_t position_stride);
};

struct FASTDET_EXPORT FiltersGradLoops {
  // out (rows, kPanel) = left (depth, kGradRows) transposed times right (depth, kPanel), or += if
  // `add`. The number of rows is a multiple of kPanelRows.
  void (*multiply)(const float* left, int64_t rows, const float* right, int64_t depth, bool add,
                   float* out);

  // The gradients of the 9 taps of at most kPanel channels, tap_stride apart, from those of the
  // positions. Whole vectors are read.
  void (*taps)(const float* grad, int64_t position_stride, int64_t channels, float* out,
               int64_t tap_stride);
};

}  // namespace fastdet::cpu
