// SPDX-License-Identifier: BSD-3-Clause
// Feature maps as torch lays them out: NCHW or channels_last. Every op reads both as they are and
// answers in the layout that it was given.
#pragma once

#include "../geometry/bilinear.h"
#include "../torch.h"

namespace fastdet {

// By strides alone, as fastdet/ops/roi_align.py decides it too: (B, C, H, W) whose channels, and
// not whose pixels, lie side by side.
inline bool is_channels_last(const Tensor& features) {
  return features.stride(1) == 1 && features.stride(3) != 1;
}

// (..., H, W, C) -> (..., C, H, W), a view.
inline Tensor channels_to_front(const Tensor& tensor) {
  const int64_t d = tensor.dim();
  return torch::stable::transpose(torch::stable::transpose(tensor, d - 3, d - 1), d - 2, d - 1);
}

// Uninitialised (B, K, C, height, width).
inline Tensor empty_pooled(const Tensor& like, int64_t images, int64_t rois, int64_t channels,
                           int64_t height, int64_t width, bool channels_last) {
  const auto dtype = like.scalar_type();
  return channels_last
             ? channels_to_front(empty(like, {images, rois, height, width, channels}, dtype))
             : empty(like, {images, rois, channels, height, width}, dtype);
}

// Uninitialised (B, C, H, W).
inline Tensor empty_features(const Tensor& like, int64_t images, int64_t channels, int64_t height,
                             int64_t width, ScalarType dtype, bool channels_last) {
  return channels_last ? channels_to_front(empty(like, {images, height, width, channels}, dtype))
                       : empty(like, {images, channels, height, width}, dtype);
}

// Zeros (B, C, H, W).
inline Tensor zero_features(const Tensor& like, int64_t images, int64_t channels, int64_t height,
                            int64_t width, ScalarType dtype, bool channels_last) {
  return channels_last ? channels_to_front(zeros(like, {images, height, width, channels}, dtype))
                       : zeros(like, {images, channels, height, width}, dtype);
}

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

// boxes: contiguous (B, K, 4) of type S; counts: contiguous, if there are any.
template <typename S>
RoiTable<S> roi_table(const Tensor& boxes, const Tensor* counts, const LevelMap<S>& levels) {
  const int64_t* count = counts ? data<int64_t>(*counts) : nullptr;
  return {data<S>(boxes), 4, count, boxes.size(0), boxes.size(1), levels};
}

}  // namespace fastdet
