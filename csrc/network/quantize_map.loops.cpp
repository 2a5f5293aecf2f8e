// SPDX-License-Identifier: BSD-3-Clause
// Rounds numbers to 8-bit integers. A sum with 1.5 * 2^23 has no bits below 1, so adding and
// subtracting it rounds to the nearest integer, ties to even, in every vector instruction set.
#include "quantize_map.loops.h"

#include "../geometry/numbers.h"

namespace fastdet::cpu::FASTDET_ISA {

namespace {

constexpr float kRounder = 12582912.0f;

template <typename T>
void quantize(const T* x, int64_t n, float scale, int64_t zero_point, uint8_t* out) {
  const float least = static_cast<float>(-zero_point), most = least + 255.0f;
  FASTDET_INDEPENDENT_ITERATIONS
  for (int64_t i = 0; i < n; ++i) {
    const float steps = static_cast<float>(x[i]) / scale;
    const float above = steps > least ? steps : least;
    const float within = above < most ? above : most;
    const float rounded = (within + kRounder) - kRounder;
    out[i] = static_cast<uint8_t>(static_cast<int32_t>(rounded - least));
  }
}

template <typename T>
constexpr QuantizeLoops<T> kLoops = {quantize<T>};

}  // namespace

FASTDET_LOOPS(QuantizeLoops<float>) { return kLoops<float>; }
FASTDET_LOOPS(QuantizeLoops<BFloat16>) { return kLoops<BFloat16>; }

}  // namespace fastdet::cpu::FASTDET_ISA
