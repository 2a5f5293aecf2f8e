// SPDX-License-Identifier: BSD-3-Clause
// RoIAlign's feature maps and RoIs as views of torch tensors.
#pragma once

#include "../torch.h"
#include "roi_table.h"

namespace fastdet {

template <typename T, typename S>
FeatureLevel<T, S> feature_level(const Tensor& features, double scale) {
  FeatureLevel<T, S> level = {};
  if constexpr (std::is_const_v<T>)
    level.data = data<std::remove_const_t<T>>(features);
  else
    level.data = mutable_data<T>(features);
  level.images = features.size(0);
  level.channels = features.size(1);
  level.height = features.size(2);
  level.width = features.size(3);
  level.image_stride = features.stride(0);
  level.channel_stride = features.stride(1);
  level.row_stride = features.stride(2);
  level.pixel_stride = features.stride(3);
  level.scale = static_cast<S>(scale);
  return level;
}

// rois: contiguous (K, 5) of type S.
template <typename S>
RoiTable<S> roi_table(const Tensor& rois, int64_t images) {
  return {data<S>(rois), 5, nullptr, images, 0, {}};
}

// boxes: contiguous (B, K, 4) of type S; counts: contiguous, or null.
template <typename S>
RoiTable<S> roi_table(const Tensor& boxes, const Tensor* counts, const LevelMap<S>& levels) {
  const int64_t* count = counts ? data<int64_t>(*counts) : nullptr;
  return {data<S>(boxes), 4, count, boxes.size(0), boxes.size(1), levels};
}

}  // namespace fastdet
