// SPDX-License-Identifier: BSD-3-Clause
// The loops of convolutions of 8-bit integers by Winograd's F(2x2, 3x3).
#pragma once

#include <cstdint>

#include "../geometry/numbers.h"
#include "../isa/loops.h"
#include "winograd_filters.h"

namespace fastdet::cpu {

// How a transformed input x becomes a byte: the nearest integer to (x - offset) * multiplier /
// 1024, ties upwards, plus `middle`, within 0 .. 255.
struct Int8Rounding {
  int16_t offset, multiplier, middle;
};

struct FASTDET_EXPORT WinogradInt8Loops {
  // The transform of the 4x4 inputs of a tile, rounded to bytes as `roundings` says for each of the
  // 16 positions. The matrices of the positions lie position_stride apart. Whole vectors are
  // written, with those of channels that are not there from inputs of 0.
  void (*input)(const uint8_t* const* pixels, int64_t channels, const Int8Rounding* roundings,
                uint8_t* out, int64_t position_stride);

  // out (rows, kWinogradPanel) = start (kWinogradPanel,) + left (rows, 4 quads) times panel
  // (quads, kWinogradPanel, 4).
  void (*multiply)(const uint8_t* left, int64_t left_stride, int64_t rows, const int8_t* panel,
                   int64_t quads, const int32_t* start, int32_t* out);
};

// What becomes of the sums of a convolution.
struct Int8Result {
  const float* factors;  // of the products: (16, factor_stride)
  int64_t factor_stride;
  const float* bias;
  float summand_scale;
  int32_t summand_zero_point;
  float least, most;   // the result is in this range
  int32_t zero_point;  // is added to a result in uint8
};

// For a result of T: uint8_t, float or BFloat16.
template <typename T>
struct FASTDET_EXPORT WinogradInt8ResultLoops {
  // Writes the channels [first, first + channels) of the 2x2 outputs of a tile, from its products,
  // which begin at `first` and are read in whole vectors. Null pixels are skipped; summands can be
  // null.
  void (*output)(const int32_t* products, int64_t position_stride, const Int8Result& result,
                 const uint8_t* const* summands, int64_t first, int64_t channels, T* const* pixels);
};

}  // namespace fastdet::cpu
