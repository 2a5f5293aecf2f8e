// SPDX-License-Identifier: BSD-3-Clause
// assign_task_aligned on torch's threads; task_aligned.h does the work.
#include "../host/parallel.h"
#include "task_aligned.h"
#include "tensors.h"

namespace fastdet::cpu {

std::tuple<Tensor, Tensor> assign_task_aligned(const Tensor& scores, const Tensor& boxes,
                                               const Tensor& points, const Tensor& gt_labels,
                                               const Tensor& gt_boxes, const Tensor& gt_counts,
                                               int64_t topk, double alpha, double beta,
                                               double min_side) {
  check_assign_task_aligned(scores, boxes, points, gt_labels, gt_boxes, gt_counts, topk, alpha,
                            beta, min_side);
  const PredictionTensors tensors(prediction_dtype(scores, {boxes, points, gt_boxes}), scores,
                                  boxes, points, gt_labels, gt_boxes, gt_counts);
  const Tensor scores_in = cast(scores, tensors.dtype);
  dispatch_floating(tensors.dtype, [&]<typename T>() {
    using S = Sum<T>;
    const TaskAlignedInput<T> in = {data<T>(scores_in),
                                    scores_in.stride(0),
                                    scores_in.stride(1),
                                    scores_in.stride(2),
                                    data<Box<S>>(tensors.boxes),
                                    data<S>(tensors.points),
                                    tensors.gts<S>(),
                                    tensors.num_images,
                                    tensors.num_anchors,
                                    topk,
                                    task_alignment<S>(alpha, beta, min_side)};
    assign_task_aligned_batch(in, mutable_data<int64_t>(tensors.index),
                              mutable_data<S>(tensors.metric), kTorchPool);
  });
  return {tensors.index, tensors.metric};
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) {
  m.impl("assign_task_aligned", TORCH_BOX(&assign_task_aligned));
}

}  // namespace fastdet::cpu
