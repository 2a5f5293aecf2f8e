// SPDX-License-Identifier: BSD-3-Clause
// RoIAlign of one RoI: `pool` is the average, `spread` its transpose. If the channels of a pixel
// are adjacent (channels_last), the vectors run over channels, and each bin is one sum over the
// products of its row and column taps. If the pixels of a row are adjacent (NCHW), the vectors run
// over x: first the rows of each bin are merged into one row, and then the few columns of that row.
#include "roi_align.loops.h"

#include <type_traits>

#include "../geometry/box.h"
#include "merge_rows.h"
#include "roi_align.avx512.h"

namespace fastdet::cpu::FASTDET_ISA {

namespace {

// Channels that are summed at a time: four cache lines of floats. The sums stay in registers.
constexpr int64_t kChannelBlock = 64;

// sums[c] = the bin (ph, pw) for channels [0, n), n <= N.
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

template <typename T>
constexpr RoiAlignLoops<T> kLoops = {
    .pool_pixels = pool_pixels<T>,
    .pool_planes = pool_planes<T>,
    .spread_pixels = spread_pixels<T>,
    .spread_planes = spread_planes<T>,
};

}  // namespace

FASTDET_LOOPS(RoiAlignLoops<float>) { return kLoops<float>; }
FASTDET_LOOPS(RoiAlignLoops<double>) { return kLoops<double>; }
FASTDET_LOOPS(RoiAlignLoops<Half>) { return kLoops<Half>; }
FASTDET_LOOPS(RoiAlignLoops<BFloat16>) { return kLoops<BFloat16>; }

}  // namespace fastdet::cpu::FASTDET_ISA
