// SPDX-License-Identifier: BSD-3-Clause
// The loops of max_pool2d over the channels of one pixel; for uint8 there is `largest` alone.
#pragma once

#include <cstdint>

#include "../isa/loops.h"

namespace fastdet::cpu {

template <typename T>
struct FASTDET_EXPORT MaxPoolLoops {
  // out[c] = the largest of pixels[t][c], t in [0, count); count > 0. NaN is larger than any
  // number.
  void (*largest)(const T* const* pixels, int64_t count, int64_t channels, T* out);
  // The same, and argmax[c] = places[t] of the largest: the first of equal numbers, the last NaN.
  void (*largest_and_place)(const T* const* pixels, const uint8_t* places, int64_t count,
                            int64_t channels, T* out, uint8_t* argmax);
  // out[c] = the sum of grads[w][c] over the windows w in [0, count) with argmax[w][c] = places[w].
  // T(0) for no window.
  void (*gradient)(const T* const* grads, const uint8_t* const* argmax, const uint8_t* places,
                   int64_t count, int64_t channels, T* out);
};

}  // namespace fastdet::cpu
