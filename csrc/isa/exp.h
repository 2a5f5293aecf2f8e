// SPDX-License-Identifier: BSD-3-Clause
// The exponential function of vectors of floats. Only x.loops.cpp files include it.
#pragma once

#include "lanes.h"

namespace fastdet::cpu::FASTDET_ISA {

// exp(x) for x clamped to [-87, 88], where the result is a normal number; NaN stays. With fused
// multiply-adds the error is below 1 unit in the last place.
__attribute__((always_inline)) inline Lanes<float> exp_lanes(Lanes<float> x) {
  using Floats = Lanes<float>;
  const auto constant = [](float c) __attribute__((always_inline)) { return all_lanes(c); };
  x = x < constant(-87.0f) ? constant(-87.0f) : x;
  x = x > constant(88.0f) ? constant(88.0f) : x;
  // x = n ln 2 + r with |r| <= ln 2 / 2. Adding 1.5 * 2^23 rounds to an integer, which is then in
  // the low bits. ln 2 is given in two parts, the first short enough that its product is exact.
  const Floats round = constant(12582912.0f);
  const Floats shifted = multiply_add<float>(x, constant(0x1.715476p0f), round);
  const Floats n = shifted - round;
  Floats r = multiply_add<float>(n, constant(-0x1.62e4p-1f), x);
  r = multiply_add<float>(n, constant(-0x1.7f7d1cp-20f), r);
  // The Taylor series: the first term left out is below 6e-9.
  Floats sum = constant(1.0f / 5040);
  for (const float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    sum = multiply_add<float>(sum, r, constant(c));
  const Lanes<int32_t> power = __builtin_bit_cast(Lanes<int32_t>, shifted) << 23;
  return __builtin_bit_cast(Floats, __builtin_bit_cast(Lanes<int32_t>, sum) + power);
}

}  // namespace fastdet::cpu::FASTDET_ISA
