// SPDX-License-Identifier: BSD-3-Clause
// assign_atss on torch's threads; atss.h does the work.
#include "../host/parallel.h"
#include "atss.h"
#include "contract.h"

namespace fastdet::cpu {

std::tuple<Tensor, Tensor> assign_atss(const Tensor& anchors,
                                       const std::vector<int64_t>& level_sizes,
                                       const Tensor& gt_boxes, const Tensor& gt_counts,
                                       int64_t topk) {
  check_assign_atss(anchors, level_sizes, gt_boxes, gt_counts, topk);
  const ScalarType dtype = box_dtype(anchors, gt_boxes);
  const Tensor anchors_in = box_input(anchors, dtype), gt_boxes_in = box_input(gt_boxes, dtype);
  const Tensor counts_in = torch::stable::contiguous(gt_counts);
  const int64_t num_images = gt_boxes.size(0), num_anchors = anchors.size(0);
  const Tensor index = empty(anchors, {num_images, num_anchors}, kInt64);
  const Tensor iou = empty(anchors, {num_images, num_anchors}, dtype);
  dispatch_box(dtype, [&]<typename S>() {
    const AtssInput<S> in = {data<Box<S>>(anchors_in), level_sizes, data<Box<S>>(gt_boxes_in),
                             data<int64_t>(counts_in), num_images,  num_anchors,
                             gt_boxes.size(1),         topk};
    assign_atss_batch(in, mutable_data<int64_t>(index), mutable_data<S>(iou), kTorchPool);
  });
  return {index, iou};
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) { m.impl("assign_atss", TORCH_BOX(&assign_atss)); }

}  // namespace fastdet::cpu
