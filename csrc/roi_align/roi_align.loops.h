// SPDX-License-Identifier: BSD-3-Clause
// Included by loops.cpp inside the namespace of an ISA.
//
// `pool` is the average, `spread` its transpose. Where pixels hold their channels side by side the
// vectors run over channels, and each bin is one sum over the products of its row and column taps.
// Where rows of pixels lie side by side the vectors run over x: rows are merged first, into one row
// of a bin's height, and that row's few columns after.

// Channels summed at a time: four cache lines of floats, and the sums stay in registers.
constexpr int64_t kChannelBlock = 64;

// values[c] = from[c], c in [0, n). GCC converts float16 one by one where it is left to.
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

// sums[c] = the bin (ph, pw) of channels [0, n), n <= N.
template <int64_t N, typename T>
inline __attribute__((always_inline)) void pool_bin(const T* __restrict image, int64_t row_stride,
                                                    int64_t pixel_stride, const Taps<Sum<T>>& rows,
                                                    const Taps<Sum<T>>& columns, int64_t ph,
                                                    int64_t pw, int64_t n,
                                                    Sum<T>* __restrict sums) {
  for (int64_t c = 0; c < N; ++c) sums[c] = 0;
  for (int64_t i = rows.begin[ph]; i < rows.begin[ph + 1]; ++i) {
    const T* row = image + rows.index[i] * row_stride;
    for (int64_t j = columns.begin[pw]; j < columns.begin[pw + 1]; ++j) {
      const T* pixel = row + columns.index[j] * pixel_stride;
      const Sum<T> weight = rows.weight[i] * columns.weight[j];
      if constexpr (std::is_same_v<T, Half>) {
        Sum<T> values[N];
        widen(pixel, n, values);
        for (int64_t c = 0; c < n; ++c) sums[c] += weight * values[c];
      } else {
        for (int64_t c = 0; c < n; ++c) sums[c] += weight * static_cast<Sum<T>>(pixel[c]);
      }
    }
  }
}

template <typename T>
void pool_pixels(const FeatureMap<const T>& map, const Taps<Sum<T>>& rows,
                 const Taps<Sum<T>>& columns, const FeatureMap<T>& pooled) {
  Sum<T> sums[kChannelBlock];
  for (int64_t ph = 0; ph < rows.bins; ++ph) {
    for (int64_t pw = 0; pw < columns.bins; ++pw) {
      T* out = pooled.data + ph * pooled.row_stride + pw * pooled.pixel_stride;
      for (int64_t c = 0; c < map.channels; c += kChannelBlock) {
        const int64_t n = min_of(map.channels - c, kChannelBlock);
        if (n == kChannelBlock)
          pool_bin<kChannelBlock>(map.data + c, map.row_stride, map.pixel_stride, rows, columns, ph,
                                  pw, kChannelBlock, sums);
        else
          pool_bin<kChannelBlock>(map.data + c, map.row_stride, map.pixel_stride, rows, columns, ph,
                                  pw, n, sums);
        if (pooled.channel_stride == 1)
          for (int64_t k = 0; k < n; ++k) out[c + k] = static_cast<T>(sums[k]);
        else
          for (int64_t k = 0; k < n; ++k)
            out[(c + k) * pooled.channel_stride] = static_cast<T>(sums[k]);
      }
    }
  }
}

template <typename T>
void spread_pixels(const FeatureMap<const T>& grad, const Taps<Sum<T>>& rows,
                   const Taps<Sum<T>>& columns, const FeatureMap<Sum<T>>& map) {
  Sum<T> bin[kChannelBlock];
  for (int64_t ph = 0; ph < rows.bins; ++ph) {
    for (int64_t pw = 0; pw < columns.bins; ++pw) {
      const T* in = grad.data + ph * grad.row_stride + pw * grad.pixel_stride;
      for (int64_t c = 0; c < map.channels; c += kChannelBlock) {
        const int64_t n = min_of(map.channels - c, kChannelBlock);
        for (int64_t k = 0; k < n; ++k)
          bin[k] = static_cast<Sum<T>>(in[(c + k) * grad.channel_stride]);
        for (int64_t i = rows.begin[ph]; i < rows.begin[ph + 1]; ++i) {
          Sum<T>* row = map.data + c + rows.index[i] * map.row_stride;
          for (int64_t j = columns.begin[pw]; j < columns.begin[pw + 1]; ++j) {
            Sum<T>* __restrict pixel = row + columns.index[j] * map.pixel_stride;
            const Sum<T> weight = rows.weight[i] * columns.weight[j];
            for (int64_t k = 0; k < n; ++k) pixel[k] += weight * bin[k];
          }
        }
      }
    }
  }
}

// merged[x] = the sum of the rows of bin ph, of columns [x, x + n), n <= N.
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

// The same of a whole span.
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

// out(b, pw) = the sum of the taps of bin pw in merged row b.
template <typename T, typename S>
void merge_columns(const S* merged, int64_t stride, int64_t bins, const Taps<S>& columns, T* out,
                   int64_t row_stride, int64_t pixel_stride) {
  for (int64_t pw = 0; pw < columns.bins; ++pw) {
    S sums[kMergedRows] = {};
    for (int64_t j = columns.begin[pw]; j < columns.begin[pw + 1]; ++j) {
      const S* column = merged + columns.index[j] - columns.low;
      const S weight = columns.weight[j];
      // All rows, with those beyond `bins` for nothing: a constant count unrolls.
      for (int64_t b = 0; b < kMergedRows; ++b) sums[b] += weight * column[b * stride];
    }
    for (int64_t b = 0; b < bins; ++b)
      out[b * row_stride + pw * pixel_stride] = static_cast<T>(sums[b]);
  }
}

#ifdef __AVX512F__
#include "roi_align.avx512.h"
#endif

template <typename T>
void pool_planes(const FeatureMap<const T>& map, const Taps<Sum<T>>& rows,
                 const Taps<Sum<T>>& columns, const FeatureMap<T>& pooled,
                 Sum<T>* __restrict merged) {
#ifdef __AVX512F__
  if constexpr (std::is_same_v<Sum<T>, float>)
    if (pool_planes_by_permutation(map, rows, columns, pooled)) return;
#endif
  const int64_t span = columns.span, stride = merged_stride(span);
  for (int64_t c = 0; c < map.channels; ++c) {
    const T* plane = map.data + c * map.channel_stride + columns.low;
    for (int64_t first = 0; first < rows.bins; first += kMergedRows) {
      const int64_t bins = min_of(rows.bins - first, kMergedRows);
      for (int64_t b = 0; b < bins; ++b)
        merge_span(plane, map.row_stride, rows, first + b, span, merged + b * stride);
      merge_columns(merged, stride, bins, columns,
                    pooled.data + c * pooled.channel_stride + first * pooled.row_stride,
                    pooled.row_stride, pooled.pixel_stride);
    }
  }
}

template <typename T>
void spread_planes(const FeatureMap<const T>& grad, const Taps<Sum<T>>& rows,
                   const Taps<Sum<T>>& columns, const FeatureMap<Sum<T>>& map,
                   Sum<T>* __restrict merged) {
#ifdef __AVX512F__
  if constexpr (std::is_same_v<Sum<T>, float>)
    if (spread_planes_by_permutation(grad, rows, columns, map)) return;
#endif
  const int64_t span = columns.span, stride = merged_stride(span);
  for (int64_t c = 0; c < map.channels; ++c) {
    Sum<T>* plane = map.data + c * map.channel_stride + columns.low;
    for (int64_t first = 0; first < rows.bins; first += kMergedRows) {
      const int64_t bins = min_of(rows.bins - first, kMergedRows);
      for (int64_t i = 0; i < kMergedRows * stride; ++i) merged[i] = 0;
      const T* in = grad.data + c * grad.channel_stride + first * grad.row_stride;
      for (int64_t pw = 0; pw < columns.bins; ++pw) {
        Sum<T> values[kMergedRows] = {};
        for (int64_t b = 0; b < bins; ++b)
          values[b] = static_cast<Sum<T>>(in[b * grad.row_stride + pw * grad.pixel_stride]);
        for (int64_t j = columns.begin[pw]; j < columns.begin[pw + 1]; ++j) {
          Sum<T>* column = merged + columns.index[j] - columns.low;
          const Sum<T> weight = columns.weight[j];
          for (int64_t b = 0; b < kMergedRows; ++b) column[b * stride] += weight * values[b];
        }
      }
      for (int64_t b = 0; b < bins; ++b) {
        for (int64_t i = rows.begin[first + b]; i < rows.begin[first + b + 1]; ++i) {
          Sum<T>* __restrict row = plane + rows.index[i] * map.row_stride;
          const Sum<T>* from = merged + b * stride;
          const Sum<T> weight = rows.weight[i];
          for (int64_t x = 0; x < span; ++x) row[x] += weight * from[x];
        }
      }
    }
  }
}
