// SPDX-License-Identifier: BSD-3-Clause
// The loops of the gradient with respect to filters, by Winograd's F(2x2, 3x3).
#pragma once

#include <cstdint>

#include "../isa/loops.h"
#include "../isa/panel.h"
#include "winograd_filters.h"

namespace fastdet::cpu {

constexpr int64_t kWinogradPositions = 16;
// The number of filters whose gradients are computed at a time.
constexpr int64_t kWinogradRows = kPanelRows;
static_assert(kWinogradPanel == kPanel);

// A tile's 16 positions lie position_stride apart, row by row.
struct FASTDET_EXPORT WinogradGradLoops {
  // The transforms of a tile's 4x4 inputs, and of the gradients of its 2x2 outputs. Whole vectors
  // are written.
  void (*input)(const float* const* pixels, int64_t channels, float* out, int64_t position_stride);
  void (*output_grad)(const float* const* pixels, int64_t channels, float* out,
                      int64_t position_stride);

  // out (rows, kWinogradPanel) = factor times panel (depth, kWinogradPanel), or += if `add`. The
  // number of rows is a multiple of kWinogradRows.
  void (*multiply)(const PanelFactor<float>& factor, int64_t rows, const float* panel,
                   int64_t depth, bool add, float* out, int64_t out_stride);

  // The gradient of a filter's 9 taps, tap_stride apart, from that of its 16 positions.
  void (*filter_grad)(const float* grad, int64_t position_stride, int64_t channels, float* out,
                      int64_t tap_stride);
};

}  // namespace fastdet::cpu
