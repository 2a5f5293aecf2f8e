// SPDX-License-Identifier: BSD-3-Clause
// assign_simota on torch's threads; simota.h does the work.
#include "../host/parallel.h"
#include "contract.h"
#include "simota.h"

namespace fastdet::cpu {

std::tuple<Tensor, Tensor> assign_simota(const Tensor& scores, const Tensor& boxes,
                                         const Tensor& points, const Tensor& strides,
                                         const Tensor& gt_labels, const Tensor& gt_boxes,
                                         const Tensor& gt_counts, double center_radius,
                                         int64_t candidate_topk, double cls_weight,
                                         double iou_weight) {
  check_assign_simota(scores, boxes, points, strides, gt_labels, gt_boxes, gt_counts, center_radius,
                      candidate_topk, cls_weight, iou_weight);
  const ScalarType dtype = prediction_dtype(scores, {boxes, points, strides, gt_boxes});
  const ScalarType maths = box_dtype(dtype);
  const Tensor scores_in = torch::stable::contiguous(cast(scores, dtype));
  const Tensor boxes_in = box_input(boxes, maths), points_in = box_input(points, maths);
  const Tensor strides_in = box_input(strides, maths), gt_boxes_in = box_input(gt_boxes, maths);
  const Tensor labels_in = torch::stable::contiguous(gt_labels);
  const Tensor counts_in = torch::stable::contiguous(gt_counts);
  const int64_t num_images = scores.size(0), num_anchors = scores.size(1);
  const Tensor index = empty(scores, {num_images, num_anchors}, kInt64);
  const Tensor iou = empty(scores, {num_images, num_anchors}, maths);
  dispatch_floating(dtype, [&]<typename T>() {
    using S = Sum<T>;
    const SimotaInput<T> in = {
        data<T>(scores_in),
        data<Box<S>>(boxes_in),
        data<S>(points_in),
        data<S>(strides_in),
        {data<int64_t>(labels_in), data<Box<S>>(gt_boxes_in), data<int64_t>(counts_in),
         gt_labels.size(1), scores.size(2)},
        num_images,
        num_anchors,
        candidate_topk,
        {static_cast<S>(center_radius), static_cast<S>(cls_weight), static_cast<S>(iou_weight)}};
    assign_simota_batch(in, mutable_data<int64_t>(index), mutable_data<S>(iou), kTorchPool);
  });
  return {index, iou};
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) { m.impl("assign_simota", TORCH_BOX(&assign_simota)); }

}  // namespace fastdet::cpu
