// SPDX-License-Identifier: BSD-3-Clause
// The memory layout of feature maps: NCHW or channels_last. RoIAlign and the mask loss read both
// without a copy and return the layout of their input. The network layers convert their input to
// channels_last (host/channels_last.h).
#pragma once

#include "../torch.h"

namespace fastdet {

// Decided by the strides alone, as in fastdet/ops/roi_align.py: the channels of (B, C, H, W) are
// adjacent in memory, and the pixels are not.
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

}  // namespace fastdet
