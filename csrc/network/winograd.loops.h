// SPDX-License-Identifier: BSD-3-Clause
// The loops of convolutions by Winograd's F(m x m, 3x3), for m of 4 and 6.
#pragma once

#include <cstdint>

#include "../geometry/numbers.h"
#include "../isa/loops.h"
#include "../isa/panel.h"
#include "winograd_filters.h"

namespace fastdet::cpu {

static_assert(kWinogradPanel == kPanel);

// In each direction, a tile has kTile outputs, and so many inputs and positions.
constexpr int winograd_side(int tile) { return tile + 2; }

struct FASTDET_EXPORT WinogradLoops {
  // out (rows, kWinogradPanel) = left (rows, depth) times panel (depth, kWinogradPanel).
  void (*multiply)(const float* left, int64_t left_stride, int64_t rows, const float* panel,
                   int64_t depth, float* out, int64_t out_stride);
};

// For filters of T, which is float or BFloat16.
template <typename T>
struct FASTDET_EXPORT WinogradFilterLoops {
  // Transposes `count` taps of each of the outputs, at taps + output * stride, to rows of
  // kWinogradPanel outputs at out + tap * out_stride, times the scales (kWinogradPanel,). Beyond
  // `outputs` the rows are 0.
  void (*lay_out)(const T* taps, int64_t stride, int64_t outputs, const float* scales,
                  int64_t count, T* out, int64_t out_stride);
};

// For maps and filters of T, which is float or BFloat16. The matrices of a tile's positions lie
// position_stride apart, row by row.
template <typename T, int kTile>
struct FASTDET_EXPORT WinogradMapLoops {
  // The transform of a tile's inputs. Whole vectors are written. The pixels of `next` are fetched
  // into the cache.
  void (*input)(const T* const* pixels, const T* const* next, int64_t channels, float* out,
                int64_t position_stride);

  // The transform of a panel of filters (depth, 9, kWinogradPanel) for the positions of a row:
  // (winograd_side(kTile), depth, kWinogradPanel).
  void (*filters)(const T* taps, int64_t depth, int row, float* out);

  // Writes the channels [first, first + channels) of a tile's outputs: the activation of its
  // products plus the bias, plus the summands unless they are null. Null pixels are skipped.
  // Products and bias begin at channel `first` and are read in whole vectors. The products of the
  // next tile, which lie tile_stride further, are fetched into the cache.
  void (*output)(const float* products, int64_t position_stride, int64_t tile_stride,
                 const float* bias, const T* const* summands, Activation activation, int64_t first,
                 int64_t channels, T* const* pixels);
};

}  // namespace fastdet::cpu
