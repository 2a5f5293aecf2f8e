// SPDX-License-Identifier: BSD-3-Clause
// The inputs of match_queries as its kernels read them, on both devices.
#pragma once

#include "../torch.h"

namespace fastdet {

// Contiguous; boxes of the type of the arithmetic, Sum<dtype>.
struct QueryTensors {
  Tensor logits, boxes, gt_labels, gt_boxes, gt_counts;
  ScalarType dtype;  // of logits
};

inline QueryTensors query_tensors(const Tensor& logits, const Tensor& boxes,
                                  const Tensor& gt_labels, const Tensor& gt_boxes,
                                  const Tensor& gt_counts) {
  const bool wide = box_dtype(boxes, gt_boxes) == kFloat64;
  const ScalarType dtype = wide ? kFloat64 : logits.scalar_type();
  return {torch::stable::contiguous(cast(logits, dtype)), box_input(boxes, box_dtype(dtype)),
          torch::stable::contiguous(gt_labels),           box_input(gt_boxes, box_dtype(dtype)),
          torch::stable::contiguous(gt_counts),           dtype};
}

}  // namespace fastdet
