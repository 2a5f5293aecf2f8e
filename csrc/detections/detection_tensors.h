// SPDX-License-Identifier: BSD-3-Clause
// The results of the detection ops as tensors, and as their drivers write them.
#pragma once

#include "detection_rows.h"
#include "../torch.h"

namespace fastdet {

// boxes (B, D, 4), scores (B, D), labels (B, D), counts (B,).
using DetectionTensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;

inline DetectionTensors empty_detections(const Tensor& logits, int64_t rows) {
  const int64_t num_images = logits.size(0);
  const auto dtype = box_dtype(logits);
  return {empty(logits, {num_images, rows, 4}, dtype), empty(logits, {num_images, rows}, dtype),
          empty(logits, {num_images, rows}, kInt64), empty(logits, {num_images}, kInt64)};
}

template <typename S>
DetectionRows<S> detection_rows(const DetectionTensors& out) {
  const auto& [boxes, scores, labels, counts] = out;
  return {mutable_data<Box<S>>(boxes), mutable_data<S>(scores), mutable_data<int64_t>(labels),
          mutable_data<int64_t>(counts)};
}

}  // namespace fastdet
