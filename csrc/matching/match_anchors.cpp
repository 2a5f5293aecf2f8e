// SPDX-License-Identifier: BSD-3-Clause
// match_anchors on torch's threads; anchor_matcher.h does the work.
#include <string>

#include "../host/parallel.h"
#include "anchor_matcher.h"
#include "contract.h"

namespace fastdet::cpu {

std::tuple<Tensor, Tensor> match_anchors(const Tensor& anchors, const Tensor& gt_boxes,
                                         const Tensor& gt_counts, double high, double low,
                                         const std::string& low_quality) {
  check_match_anchors(anchors, gt_boxes, gt_counts);
  const LowQuality rule = parse_low_quality(low_quality);
  const auto dtype = box_dtype(anchors, gt_boxes);
  const int64_t num_images = gt_boxes.size(0), num_anchors = anchors.size(anchors.dim() - 2);
  const Tensor anchors_in = box_input(anchors, dtype), gt_boxes_in = box_input(gt_boxes, dtype);
  const Tensor counts_in = torch::stable::contiguous(gt_counts);
  const Tensor index = empty(anchors, {num_images, num_anchors}, kInt64);
  const Tensor iou = empty(anchors, {num_images, num_anchors}, dtype);
  dispatch_box(dtype, [&]<typename T>() {
    // As in torch, the threshold is rounded to the type of the IoUs before it is compared.
    const MatchRule<T> rounded = {static_cast<T>(high), static_cast<T>(low), rule};
    const MatchInput<T> in = {data<Box<T>>(anchors_in),
                              anchors.dim() == 3 ? num_anchors : 0,
                              data<Box<T>>(gt_boxes_in),
                              data<int64_t>(counts_in),
                              num_images,
                              num_anchors,
                              gt_boxes.size(1),
                              rounded};
    match_batch(in, mutable_data<int64_t>(index), mutable_data<T>(iou),
                [](int64_t n, int64_t grain, const auto& body) { parallel_for(n, grain, body); });
  });
  return {index, iou};
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) { m.impl("match_anchors", TORCH_BOX(&match_anchors)); }

}  // namespace fastdet::cpu
