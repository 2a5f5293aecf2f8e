// SPDX-License-Identifier: BSD-3-Clause
// Included by loops.cpp inside the namespace of an ISA.
//
// `pool` is the average, `spread` its transpose. Where pixels hold their channels side by side the
// vectors run over channels, and each bin is one sum over the products of its row and column taps.
// Where rows of pixels lie side by side the vectors run over x: rows are merged first, into one row
// of a bin's height, and that row's few columns after.

// Channels summed at a time: eight cache lines of floats, and the sums stay in registers.
constexpr int64_t kChannelBlock = 64;

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
      for (int64_t c = 0; c < n; ++c) sums[c] += weight * static_cast<Sum<T>>(pixel[c]);
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

// merged: room for columns.span values.
template <typename T>
void pool_planes(const FeatureMap<const T>& map, const Taps<Sum<T>>& rows,
                 const Taps<Sum<T>>& columns, const FeatureMap<T>& pooled,
                 Sum<T>* __restrict merged) {
  for (int64_t c = 0; c < map.channels; ++c) {
    const T* plane = map.data + c * map.channel_stride + columns.low;
    for (int64_t ph = 0; ph < rows.bins; ++ph) {
      for (int64_t x = 0; x < columns.span; ++x) merged[x] = 0;
      for (int64_t i = rows.begin[ph]; i < rows.begin[ph + 1]; ++i) {
        const T* __restrict row = plane + rows.index[i] * map.row_stride;
        const Sum<T> weight = rows.weight[i];
        for (int64_t x = 0; x < columns.span; ++x)
          merged[x] += weight * static_cast<Sum<T>>(row[x]);
      }
      T* out = pooled.data + c * pooled.channel_stride + ph * pooled.row_stride;
      for (int64_t pw = 0; pw < columns.bins; ++pw) {
        Sum<T> sum = 0;
        for (int64_t j = columns.begin[pw]; j < columns.begin[pw + 1]; ++j)
          sum += columns.weight[j] * merged[columns.index[j] - columns.low];
        out[pw * pooled.pixel_stride] = static_cast<T>(sum);
      }
    }
  }
}

// merged: room for columns.span values.
template <typename T>
void spread_planes(const FeatureMap<const T>& grad, const Taps<Sum<T>>& rows,
                   const Taps<Sum<T>>& columns, const FeatureMap<Sum<T>>& map,
                   Sum<T>* __restrict merged) {
  for (int64_t c = 0; c < map.channels; ++c) {
    Sum<T>* plane = map.data + c * map.channel_stride + columns.low;
    for (int64_t ph = 0; ph < rows.bins; ++ph) {
      const T* in = grad.data + c * grad.channel_stride + ph * grad.row_stride;
      for (int64_t x = 0; x < columns.span; ++x) merged[x] = 0;
      for (int64_t pw = 0; pw < columns.bins; ++pw) {
        const Sum<T> value = static_cast<Sum<T>>(in[pw * grad.pixel_stride]);
        for (int64_t j = columns.begin[pw]; j < columns.begin[pw + 1]; ++j)
          merged[columns.index[j] - columns.low] += columns.weight[j] * value;
      }
      for (int64_t i = rows.begin[ph]; i < rows.begin[ph + 1]; ++i) {
        Sum<T>* __restrict row = plane + rows.index[i] * map.row_stride;
        const Sum<T> weight = rows.weight[i];
        for (int64_t x = 0; x < columns.span; ++x) row[x] += weight * merged[x];
      }
    }
  }
}
