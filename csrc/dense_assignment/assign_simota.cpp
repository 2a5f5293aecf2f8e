// SPDX-License-Identifier: BSD-3-Clause
// assign_simota on torch's threads; simota.h does the work.
#include "../host/parallel.h"
#include "simota.h"
#include "tensors.h"

namespace fastdet::cpu {

std::tuple<Tensor, Tensor> assign_simota(const Tensor& scores, const Tensor& boxes,
                                         const Tensor& points, const Tensor& strides,
                                         const Tensor& gt_labels, const Tensor& gt_boxes,
                                         const Tensor& gt_counts, double center_radius,
                                         int64_t candidate_topk, double cls_weight,
                                         double iou_weight) {
  check_assign_simota(scores, boxes, points, strides, gt_labels, gt_boxes, gt_counts, center_radius,
                      candidate_topk, cls_weight, iou_weight);
  const PredictionTensors tensors(prediction_dtype(scores, {boxes, points, strides, gt_boxes}),
                                  scores, boxes, points, gt_labels, gt_boxes, gt_counts);
  const Tensor scores_in = torch::stable::contiguous(cast(scores, tensors.dtype));
  const Tensor strides_in = box_input(strides, tensors.maths);
  dispatch_floating(tensors.dtype, [&]<typename T>() {
    using S = Sum<T>;
    const SimotaInput<T> in = {
        data<T>(scores_in),
        data<Box<S>>(tensors.boxes),
        data<S>(tensors.points),
        data<S>(strides_in),
        tensors.gts<S>(),
        tensors.num_images,
        tensors.num_anchors,
        candidate_topk,
        {static_cast<S>(center_radius), static_cast<S>(cls_weight), static_cast<S>(iou_weight)}};
    assign_simota_batch(in, mutable_data<int64_t>(tensors.index), mutable_data<S>(tensors.metric),
                        kTorchPool);
  });
  return {tensors.index, tensors.metric};
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) { m.impl("assign_simota", TORCH_BOX(&assign_simota)); }

}  // namespace fastdet::cpu
