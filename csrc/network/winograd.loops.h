// SPDX-License-Identifier: BSD-3-Clause
// The loops of convolutions by Winograd's F(4x4, 3x3).
#pragma once

#include <cstdint>

#include "../geometry/numbers.h"
#include "../isa/loops.h"
#include "../isa/panel.h"
#include "winograd_filters.h"

namespace fastdet::cpu {

static_assert(kWinogradPanel == kPanel);

constexpr int kWinogradTile = 4;                  // outputs of a tile, in each direction
constexpr int kWinogradSide = kWinogradTile + 2;  // its inputs, and its positions

struct FASTDET_EXPORT WinogradLoops {
  // out (rows, kWinogradPanel) = left (rows, depth) times panel (depth, kWinogradPanel).
  void (*multiply)(const float* left, int64_t left_stride, int64_t rows, const float* panel,
                   int64_t depth, float* out, int64_t out_stride);
};

// For maps and filters of T, which is float or BFloat16. A tile has 6x6 positions; their matrices
// lie position_stride apart, row by row.
template <typename T>
struct FASTDET_EXPORT WinogradMapLoops {
  // Transposes `count` taps of each of the outputs, at taps + output * stride, to rows of
  // kWinogradPanel outputs at out + tap * out_stride, times the scales (kWinogradPanel,). Beyond
  // `outputs` the rows are 0.
  void (*lay_out)(const T* taps, int64_t stride, int64_t outputs, const float* scales,
                  int64_t count, T* out, int64_t out_stride);

  // The transform of a tile's 6x6 inputs. Whole vectors are written. The pixels of `next` are
  // fetched into the cache.
  void (*input)(const T* const* pixels, const T* const* next, int64_t channels, float* out,
                int64_t position_stride);

  // The transform of a panel of filters (depth, 9, kWinogradPanel) for the 6 positions of a row:
  // (6, depth, kWinogradPanel).
  void (*filters)(const T* taps, int64_t depth, int row, float* out);

  // Writes the channels [first, first + channels) of 4x4 outputs: the activation of a tile's
  // products plus the bias, plus the summands unless they are null. Null pixels are skipped.
  // Products and bias begin at channel `first` and are read in whole vectors.
  void (*output)(const float* products, int64_t position_stride, const float* bias,
                 const T* const* summands, Activation activation, int64_t first, int64_t channels,
                 T* const* pixels);
};

}  // namespace fastdet::cpu
