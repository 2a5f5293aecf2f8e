// SPDX-License-Identifier: BSD-3-Clause
// The loop of quantize_map.
#pragma once

#include <cstdint>

#include "../isa/loops.h"

namespace fastdet::cpu {

template <typename T>
struct FASTDET_EXPORT QuantizeLoops {
  // out[i] = round(x[i] / scale) + zero_point within 0 .. 255, ties to even; NaN is 0.
  void (*quantize)(const T* x, int64_t n, float scale, int64_t zero_point, uint8_t* out);
};

}  // namespace fastdet::cpu
