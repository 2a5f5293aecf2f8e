// SPDX-License-Identifier: BSD-3-Clause
// The tensors of an assignment to predictions, but for the scores: the inputs as the kernels of
// both devices read them, and the results.
#pragma once

#include "../torch.h"
#include "assignable.h"
#include "contract.h"

namespace fastdet {

// Inputs are contiguous; boxes and points of the type `maths`.
struct PredictionTensors {
  ScalarType dtype, maths;  // of the scores; of the arithmetic, Sum<dtype>
  Tensor boxes, points, gt_labels, gt_boxes, gt_counts;
  int64_t num_images, num_anchors, num_gts, num_classes;
  Tensor index, metric;  // (B, A)

  PredictionTensors(ScalarType dtype, const Tensor& scores, const Tensor& boxes,
                    const Tensor& points, const Tensor& gt_labels, const Tensor& gt_boxes,
                    const Tensor& gt_counts)
      : dtype(dtype),
        maths(box_dtype(dtype)),
        boxes(box_input(boxes, maths)),
        points(box_input(points, maths)),
        gt_labels(torch::stable::contiguous(gt_labels)),
        gt_boxes(box_input(gt_boxes, maths)),
        gt_counts(torch::stable::contiguous(gt_counts)),
        num_images(scores.size(0)),
        num_anchors(scores.size(1)),
        num_gts(gt_labels.size(1)),
        num_classes(scores.size(2)),
        index(empty(scores, {num_images, num_anchors}, kInt64)),
        metric(empty(scores, {num_images, num_anchors}, maths)) {}

  template <typename S>
  LabelledGts<S> gts() const {
    return {data<int64_t>(gt_labels), data<Box<S>>(gt_boxes), data<int64_t>(gt_counts), num_gts,
            num_classes};
  }
};

}  // namespace fastdet
