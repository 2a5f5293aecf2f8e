// SPDX-License-Identifier: BSD-3-Clause
// Vectors of float32 whose values lie in memory as float32 or as bfloat16. A store rounds to the
// nearest bfloat16, ties to even, as torch does. Only x.loops.cpp files include it.
#pragma once

#include "../geometry/numbers.h"
#include "lanes.h"

namespace fastdet::cpu::FASTDET_ISA {

// The values of one register of float32, as bfloat16.
typedef uint16_t BFloat16Lanes __attribute__((vector_size(kVectorBytes / 2)));

__attribute__((always_inline)) inline Lanes<float> widened(const BFloat16Lanes& halves) {
  return __builtin_bit_cast(Lanes<float>, __builtin_convertvector(halves, Lanes<uint32_t>) << 16);
}

__attribute__((always_inline)) inline BFloat16Lanes narrowed(const Lanes<float>& x) {
  using Bits = Lanes<uint32_t>;
  const Bits bits = __builtin_bit_cast(Bits, x);
  const Bits rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  // The sum would make infinity, or -0, of some NaNs.
  return __builtin_convertvector(x == x ? rounded : Bits{} + 0x7fc0u, BFloat16Lanes);
}

__attribute__((always_inline)) inline Lanes<float> load_floats(const float* p) {
  return load_lanes(p);
}

__attribute__((always_inline)) inline Lanes<float> load_floats(const BFloat16* p) {
  BFloat16Lanes halves;
  __builtin_memcpy(&halves, p, sizeof halves);
  return widened(halves);
}

// The first n values, or all if the vector has fewer lanes; the other lanes are 0.
template <typename T>
__attribute__((always_inline)) inline Lanes<float> load_first_floats(const T* p, int64_t n) {
  if (n >= kLanesOf<float>) return load_floats(p);
  T some[kLanesOf<float>] = {};
  __builtin_memcpy(some, p, n * sizeof(T));
  return load_floats(some);
}

__attribute__((always_inline)) inline void store_first_floats(const Lanes<float>& x, float* p,
                                                              int64_t n) {
  store_first<float>(x, p, n);
}

__attribute__((always_inline)) inline void store_first_floats(const Lanes<float>& x, BFloat16* p,
                                                              int64_t n) {
  const BFloat16Lanes halves = narrowed(x);
  if (n >= kLanesOf<float>)
    __builtin_memcpy(p, &halves, sizeof halves);
  else
    __builtin_memcpy(p, &halves, n * sizeof(BFloat16));
}

}  // namespace fastdet::cpu::FASTDET_ISA
