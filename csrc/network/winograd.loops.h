// SPDX-License-Identifier: BSD-3-Clause
// The loops of Winograd's F(2x2, 3x3).
#pragma once

#include <cstdint>

#include "../isa/loops.h"
#include "../isa/panel.h"
#include "winograd_filters.h"

namespace fastdet::cpu {

// The number of tiles that are multiplied by a panel of filters at a time.
constexpr int64_t kWinogradRows = kPanelRows;
static_assert(kWinogradPanel == kPanel);

// Loops of Winograd's F(2x2, 3x3). A tile's 16 positions lie position_stride apart, row by row.
struct FASTDET_EXPORT WinogradLoops {
  // The transform of a tile's 4x4 inputs. Whole vectors are written.
  void (*input)(const float* const* pixels, int64_t channels, float* out, int64_t position_stride);

  // out (rows, kWinogradPanel) = factor times panel (depth, kWinogradPanel), or += if `add`. The
  // number of rows is a multiple of kWinogradRows.
  void (*multiply)(const PanelFactor<float>& factor, int64_t rows, const float* panel,
                   int64_t depth, bool add, float* out, int64_t out_stride);

  // Writes the channels [first, first + channels) of 2x2 outputs: a tile's products plus the bias,
  // plus the summands unless they are null. Null pixels are skipped. Products and bias begin at
  // channel `first` and are read in whole vectors.
  void (*output)(const float* products, int64_t position_stride, const float* bias,
                 const float* const* summands, bool relu, int64_t first, int64_t channels,
                 float* const* pixels);

  // The transform of at most kWinogradPanel channels of a filter to 16 positions, kWinogradPanel
  // apart; the 9 taps of the filter lie tap_stride apart.
  void (*filter)(const float* taps, int64_t tap_stride, int64_t channels, float* out);
};

}  // namespace fastdet::cpu
