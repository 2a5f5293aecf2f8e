// SPDX-License-Identifier: BSD-3-Clause
// The sums over rows and columns with which RoIAlign averages a bin; crop_masks uses them too. Only
// x.loops.cpp files include it.
#pragma once

#include "../geometry/box.h"
#include "../geometry/numbers.h"
#include "../isa/lanes.h"
#include "taps.h"

namespace fastdet::cpu::FASTDET_ISA {

// values[c] = from[c], c in [0, n). Without the intrinsics, GCC converts float16 values one by one.
template <typename T>
inline __attribute__((always_inline)) void widen(const T* from, int64_t n, Sum<T>* values) {
  int64_t c = 0;
#ifdef __F16C__
  if constexpr (std::is_same_v<T, Half>)
    for (; c + 8 <= n; c += 8)
      _mm256_storeu_ps(
          values + c, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + c))));
#endif
  for (; c < n; ++c) values[c] = static_cast<Sum<T>>(from[c]);
}

// merged[x] = the weighted sum of the rows of bin ph, for columns [x, x + n), n <= N.
template <int64_t N, typename T, typename S>
inline __attribute__((always_inline)) void merge_rows(const T* __restrict plane, int64_t row_stride,
                                                      const Taps<S>& rows, int64_t ph, int64_t n,
                                                      S* __restrict merged) {
  S sums[N] = {};
  for (int64_t i = rows.begin[ph]; i < rows.begin[ph + 1]; ++i) {
    const T* row = plane + rows.index[i] * row_stride;
    if constexpr (std::is_same_v<T, Half>) {
      S values[N];
      widen(row, n, values);
      for (int64_t x = 0; x < n; ++x) sums[x] += rows.weight[i] * values[x];
    } else {
      for (int64_t x = 0; x < n; ++x) sums[x] += rows.weight[i] * static_cast<S>(row[x]);
    }
  }
  for (int64_t x = 0; x < n; ++x) merged[x] = sums[x];
}

// merge_rows for a whole span.
template <typename T, typename S>
void merge_span(const T* plane, int64_t row_stride, const Taps<S>& rows, int64_t ph, int64_t span,
                S* merged) {
  constexpr int64_t kWide = 4 * kColumnBlock;
  int64_t x = 0;
  for (; x + kWide <= span; x += kWide)
    merge_rows<kWide>(plane + x, row_stride, rows, ph, kWide, merged + x);
  for (; x + kColumnBlock <= span; x += kColumnBlock)
    merge_rows<kColumnBlock>(plane + x, row_stride, rows, ph, kColumnBlock, merged + x);
  if (x < span) merge_rows<kColumnBlock>(plane + x, row_stride, rows, ph, span - x, merged + x);
}

// out(b, pw) = the weighted sum of the taps of bin pw in merged row b.
template <typename T, typename S>
void merge_columns(const S* merged, int64_t stride, int64_t bins, const Taps<S>& columns, T* out,
                   int64_t row_stride, int64_t pixel_stride) {
  for (int64_t pw = 0; pw < columns.bins; ++pw) {
    S sums[kMergedRows] = {};
    for (int64_t j = columns.begin[pw]; j < columns.begin[pw + 1]; ++j) {
      const S* column = merged + columns.index[j] - columns.low;
      const S weight = columns.weight[j];
      // Computes all kMergedRows rows, even those beyond `bins`: a loop with a constant count is
      // unrolled.
      for (int64_t b = 0; b < kMergedRows; ++b) sums[b] += weight * column[b * stride];
    }
    for (int64_t b = 0; b < bins; ++b)
      out[b * row_stride + pw * pixel_stride] = static_cast<T>(sums[b]);
  }
}

}  // namespace fastdet::cpu::FASTDET_ISA
