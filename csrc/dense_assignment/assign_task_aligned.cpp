// SPDX-License-Identifier: BSD-3-Clause
// assign_task_aligned on torch's threads; task_aligned.h does the work.
#include "../host/parallel.h"
#include "contract.h"
#include "task_aligned.h"

namespace fastdet::cpu {

std::tuple<Tensor, Tensor> assign_task_aligned(const Tensor& scores, const Tensor& boxes,
                                               const Tensor& points, const Tensor& gt_labels,
                                               const Tensor& gt_boxes, const Tensor& gt_counts,
                                               int64_t topk, double alpha, double beta,
                                               double min_side) {
  check_assign_task_aligned(scores, boxes, points, gt_labels, gt_boxes, gt_counts, topk, alpha,
                            beta, min_side);
  const ScalarType dtype = prediction_dtype(scores, {boxes, points, gt_boxes});
  const ScalarType maths = box_dtype(dtype);
  const Tensor scores_in = cast(scores, dtype), boxes_in = box_input(boxes, maths);
  const Tensor points_in = box_input(points, maths), gt_boxes_in = box_input(gt_boxes, maths);
  const Tensor labels_in = torch::stable::contiguous(gt_labels);
  const Tensor counts_in = torch::stable::contiguous(gt_counts);
  const int64_t num_images = scores.size(0), num_anchors = scores.size(1);
  const Tensor index = empty(scores, {num_images, num_anchors}, kInt64);
  const Tensor metric = empty(scores, {num_images, num_anchors}, maths);
  dispatch_floating(dtype, [&]<typename T>() {
    using S = Sum<T>;
    const TaskAlignedInput<T> in = {data<T>(scores_in),
                                    scores_in.stride(0),
                                    scores_in.stride(1),
                                    scores_in.stride(2),
                                    data<Box<S>>(boxes_in),
                                    data<S>(points_in),
                                    {data<int64_t>(labels_in), data<Box<S>>(gt_boxes_in),
                                     data<int64_t>(counts_in), gt_labels.size(1), scores.size(2)},
                                    num_images,
                                    num_anchors,
                                    topk,
                                    task_alignment<S>(alpha, beta, min_side)};
    assign_task_aligned_batch(in, mutable_data<int64_t>(index), mutable_data<S>(metric),
                              kTorchPool);
  });
  return {index, metric};
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) {
  m.impl("assign_task_aligned", TORCH_BOX(&assign_task_aligned));
}

}  // namespace fastdet::cpu
