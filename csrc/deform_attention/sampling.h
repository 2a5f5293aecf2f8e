// SPDX-License-Identifier: BSD-3-Clause
// Where deformable attention samples a level, for host and device: plain C++, no torch. A sample is
// bilinear between the centres of pixels (align_corners=False), and pixels outside the level are 0.
#pragma once

#include <cstdint>

#include "../geometry/box.h"

namespace fastdet {

// One axis of a sample: the last pixel whose centre is not behind the position, -1 to size - 1, and
// the weight of the pixel after it. Of the two pixels, one may be outside the level.
template <typename S>
struct AxisSample {
  int32_t index;
  S fraction;
  bool touches;  // whether the sample reads a pixel of the level; false for NaN
};

// `location` is a fraction of the size. Without branches, so that a loop over points vectorises.
template <typename S>
FASTDET_HOST_DEVICE AxisSample<S> axis_sample(S location, S size) {
  const S position = location * size - S(0.5);
  const bool touches = (position > S(-1)) & (position < size);
  const S inside = touches ? position : S(0);
  const int32_t whole = static_cast<int32_t>(inside);  // rounds towards 0
  const int32_t index = whole - static_cast<int32_t>(static_cast<S>(whole) > inside);
  return {index, inside - static_cast<S>(index), touches};
}

// The four pixels of a sample as bits.
constexpr int kTopLeft = 1, kTopRight = 2, kBottomLeft = 4, kBottomRight = 8, kAllTaps = 15;

// The bits of the pixels that are inside a level of this size.
template <typename S>
FASTDET_HOST_DEVICE int32_t taps_inside(const AxisSample<S>& y, const AxisSample<S>& x,
                                        int32_t height, int32_t width) {
  const int32_t rows = (y.index >= 0 ? kTopLeft | kTopRight : 0) |
                       (y.index + 1 < height ? kBottomLeft | kBottomRight : 0);
  const int32_t columns = (x.index >= 0 ? kTopLeft | kBottomLeft : 0) |
                          (x.index + 1 < width ? kTopRight | kBottomRight : 0);
  return y.touches & x.touches ? rows & columns : 0;
}

}  // namespace fastdet
