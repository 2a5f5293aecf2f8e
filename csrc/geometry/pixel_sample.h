// SPDX-License-Identifier: BSD-3-Clause
// Where a bilinear sample between the centres of pixels reads a map, for host and device: plain
// C++, no torch. Pixels outside the map are 0.
#pragma once

#include <cstdint>

#include "box.h"

namespace fastdet {

// One axis of a sample: the last pixel whose centre is not behind the position, -1 to size - 1, and
// the weight of the pixel after it. Of the two pixels, one may be outside the map.
template <typename S>
struct AxisSample {
  int32_t index;
  S fraction;
  int32_t touches;  // 1 if the sample reads a pixel of the map, else 0; 0 for NaN
};

// `position` is in pixels; the first pixel's centre is at 0. Every value has the width of a float
// and every choice is one between two values, so that a loop over samples vectorises.
template <typename S>
FASTDET_HOST_DEVICE AxisSample<S> axis_sample_at(S position, S size) {
  const S above = position > S(-1) ? position : S(-1);  // with this order, NaN becomes -1
  const S inside = above < size ? above : size;
  const int32_t whole = static_cast<int32_t>(inside);  // rounds towards 0
  const int32_t index = whole - (static_cast<S>(whole) > inside ? 1 : 0);
  const int32_t touches = (position > S(-1) ? 1 : 0) & (position < size ? 1 : 0);
  return {index, inside - static_cast<S>(index), touches};
}

// The four pixels of a sample as bits.
constexpr int32_t kTopLeft = 1, kTopRight = 2, kBottomLeft = 4, kBottomRight = 8, kAllTaps = 15;

// The bits of the pixels that are inside a map of this size.
template <typename S>
FASTDET_HOST_DEVICE int32_t taps_inside(const AxisSample<S>& y, const AxisSample<S>& x,
                                        int32_t height, int32_t width) {
  const int32_t top = y.index >= 0 ? kTopLeft | kTopRight : 0;
  const int32_t bottom = y.index + 1 < height ? kBottomLeft | kBottomRight : 0;
  const int32_t left = x.index >= 0 ? kTopLeft | kBottomLeft : 0;
  const int32_t right = x.index + 1 < width ? kTopRight | kBottomRight : 0;
  return (top | bottom) & (left | right) & -(y.touches & x.touches);
}

}  // namespace fastdet
