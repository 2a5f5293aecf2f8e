// SPDX-License-Identifier: BSD-3-Clause
// Vectors as wide as a register of the ISA that this file is compiled for, for loops that GCC does
// not vectorise from plain code. Only x.loops.cpp files include it.
#pragma once

#ifndef FASTDET_ISA
#error "lanes.h is for x.loops.cpp, which CMake compiles once for each ISA with FASTDET_ISA set"
#endif

#include <cstdint>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastdet::cpu::FASTDET_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename T>
constexpr int kLanesOf = kVectorBytes / sizeof(T);

// As wide as a register: wider vectors, and plain arrays, would be kept in memory.
template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};

template <typename T>
using Lanes = typename VectorOf<T>::type;

template <typename T>
__attribute__((always_inline)) inline Lanes<T> load_lanes(const T* p) {
  Lanes<T> lanes;
  __builtin_memcpy(&lanes, p, sizeof lanes);
  return lanes;
}

template <typename T>
__attribute__((always_inline)) inline void store_lanes(const Lanes<T>& lanes, T* p) {
  __builtin_memcpy(p, &lanes, sizeof lanes);
}

// The first n values, or all if the vector has fewer lanes; the other lanes are 0.
template <typename T>
__attribute__((always_inline)) inline Lanes<T> load_first(const T* p, int64_t n) {
  if (n >= kLanesOf<T>) return load_lanes(p);
  T some[kLanesOf<T>] = {};
  for (int64_t i = 0; i < n; ++i) some[i] = p[i];
  return load_lanes(some);
}

template <typename T>
__attribute__((always_inline)) inline void store_first(const Lanes<T>& lanes, T* p, int64_t n) {
  if (n >= kLanesOf<T>) return store_lanes<T>(lanes, p);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

// A vector with the same value in every lane.
template <typename T>
__attribute__((always_inline)) inline Lanes<T> all_lanes(T value) {
  return value - Lanes<T>{};
}

// a * b + c, rounded once if the processor can.
template <typename T>
__attribute__((always_inline)) inline Lanes<T> multiply_add(const Lanes<T>& a, const Lanes<T>& b,
                                                            const Lanes<T>& c) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>)
    return _mm512_fmadd_ps(a, b, c);
  else
    return _mm512_fmadd_pd(a, b, c);
#elif defined(__FMA__)
  if constexpr (std::is_same_v<T, float>)
    return _mm256_fmadd_ps(a, b, c);
  else
    return _mm256_fmadd_pd(a, b, c);
#else
  return a * b + c;
#endif
}

// The type of a comparison of Lanes<T>: -1 or 0 in each lane.
template <typename T>
using LaneMask = decltype(Lanes<T>{} < Lanes<T>{});

template <typename Mask>
__attribute__((always_inline)) inline bool any_lane(const Mask& mask) {
#if defined(__AVX512F__)
  const __m512i bits = __builtin_bit_cast(__m512i, mask);
  return _mm512_test_epi64_mask(bits, bits) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_epi8(__builtin_bit_cast(__m256i, mask)) != 0;
#elif defined(__SSE2__)
  return _mm_movemask_epi8(__builtin_bit_cast(__m128i, mask)) != 0;
#else
  const auto halves = __builtin_bit_cast(Lanes<int64_t>, mask);
  return (halves[0] | halves[1]) != 0;
#endif
}

// The sums over the lanes of four vectors, to sums[0, 4).
__attribute__((always_inline)) inline void sum_lanes(const Lanes<float> (&of)[4], float* sums) {
#if defined(__AVX512F__)
  const __m512 a =
      _mm512_add_ps(_mm512_unpacklo_ps(of[0], of[1]), _mm512_unpackhi_ps(of[0], of[1]));
  const __m512 b =
      _mm512_add_ps(_mm512_unpacklo_ps(of[2], of[3]), _mm512_unpackhi_ps(of[2], of[3]));
  const __m512 c = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
  const __m256 d = _mm256_add_ps(_mm512_castps512_ps256(c), _mm512_extractf32x8_ps(c, 1));
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(d), _mm256_extractf128_ps(d, 1)));
#elif defined(__AVX2__)
  const __m256 a =
      _mm256_add_ps(_mm256_unpacklo_ps(of[0], of[1]), _mm256_unpackhi_ps(of[0], of[1]));
  const __m256 b =
      _mm256_add_ps(_mm256_unpacklo_ps(of[2], of[3]), _mm256_unpackhi_ps(of[2], of[3]));
  const __m256 c = _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(c), _mm256_extractf128_ps(c, 1)));
#elif defined(__SSE2__)
  const __m128 a = _mm_add_ps(_mm_unpacklo_ps(of[0], of[1]), _mm_unpackhi_ps(of[0], of[1]));
  const __m128 b = _mm_add_ps(_mm_unpacklo_ps(of[2], of[3]), _mm_unpackhi_ps(of[2], of[3]));
  _mm_storeu_ps(sums, _mm_add_ps(_mm_shuffle_ps(a, b, 0x44), _mm_shuffle_ps(a, b, 0xee)));
#else
  for (int k = 0; k < 4; ++k) sums[k] = (of[k][0] + of[k][2]) + (of[k][1] + of[k][3]);
#endif
}

__attribute__((always_inline)) inline void sum_lanes(const Lanes<double> (&of)[4], double* sums) {
  for (int k = 0; k < 4; ++k) {
    sums[k] = of[k][0];
    for (int lane = 1; lane < kLanesOf<double>; ++lane) sums[k] += of[k][lane];
  }
}

// The mask as bits, the first lane lowest.
template <typename Mask>
__attribute__((always_inline)) inline uint32_t lane_bits(const Mask& mask) {
  [[maybe_unused]] constexpr bool kWide = sizeof(mask[0]) == 8;
#if defined(__AVX512F__)
  const __m512i bits = __builtin_bit_cast(__m512i, mask);
  return kWide ? _mm512_test_epi64_mask(bits, bits) : _mm512_test_epi32_mask(bits, bits);
#elif defined(__AVX2__)
  return kWide ? _mm256_movemask_pd(__builtin_bit_cast(__m256d, mask))
               : _mm256_movemask_ps(__builtin_bit_cast(__m256, mask));
#elif defined(__SSE2__)
  return kWide ? _mm_movemask_pd(__builtin_bit_cast(__m128d, mask))
               : _mm_movemask_ps(__builtin_bit_cast(__m128, mask));
#else
  uint32_t bits = 0;
  for (unsigned i = 0; i < sizeof mask / sizeof mask[0]; ++i) bits |= (mask[i] & 1u) << i;
  return bits;
#endif
}

// For the next two operations GCC 12 uses more AVX-512 instructions than necessary.

template <typename T>
__attribute__((always_inline)) inline bool any_greater(const Lanes<T>& a, const Lanes<T>& b) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>)
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0;
  else
    return _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ) != 0;
#else
  return any_lane(a > b);
#endif
}

// Replaces negative values and NaN by 0.
template <typename T>
__attribute__((always_inline)) inline Lanes<T> positive_part(const Lanes<T>& x) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>)
    return _mm512_max_ps(x, _mm512_setzero_ps());
  else
    return _mm512_max_pd(x, _mm512_setzero_pd());
#else
  return x > Lanes<T>{} ? x : Lanes<T>{};
#endif
}

}  // namespace fastdet::cpu::FASTDET_ISA
