// SPDX-License-Identifier: BSD-3-Clause
// The loops of RoIAlign, over the channels of one RoI.
#pragma once

#include <cstdint>

#include "../geometry/numbers.h"
#include "../isa/loops.h"
#include "taps.h"

namespace fastdet::cpu {

// The channels of one image or of one pooled RoI; (c, y, x) lies at
// c * channel_stride + y * row_stride + x * pixel_stride.
template <typename T>
struct FeatureMap {
  T* data;
  int64_t channels, channel_stride, row_stride, pixel_stride;
};

// T is float, double, Half or BFloat16.
template <typename T>
struct FASTDET_EXPORT RoiAlignLoops {
  // RoIAlign of one RoI. `pixels`: channel_stride of the map is 1. `planes`: its pixel_stride is 1,
  // and merged has room for kMergedRows * merged_stride(columns.span) finite values. The pooled
  // features may have any strides.
  void (*pool_pixels)(const FeatureMap<const T>& map, const Taps<Sum<T>>& rows,
                      const Taps<Sum<T>>& columns, const FeatureMap<T>& pooled);
  void (*pool_planes)(const FeatureMap<const T>& map, const Taps<Sum<T>>& rows,
                      const Taps<Sum<T>>& columns, const FeatureMap<T>& pooled, Sum<T>* merged);
  // The transpose: adds the gradient of one pooled RoI to the gradient of the map.
  void (*spread_pixels)(const FeatureMap<const T>& grad, const Taps<Sum<T>>& rows,
                        const Taps<Sum<T>>& columns, const FeatureMap<Sum<T>>& map);
  void (*spread_planes)(const FeatureMap<const T>& grad, const Taps<Sum<T>>& rows,
                        const Taps<Sum<T>>& columns, const FeatureMap<Sum<T>>& map, Sum<T>* merged);
};

}  // namespace fastdet::cpu
