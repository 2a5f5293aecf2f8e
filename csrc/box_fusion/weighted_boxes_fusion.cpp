// SPDX-License-Identifier: BSD-3-Clause
// Weighted boxes fusion for torch tensors, on the CPU alone; weighted_boxes_fusion.h does the work.
#include "weighted_boxes_fusion.h"

#include "../host/parallel.h"
#include "contract.h"

namespace fastdet::cpu {

std::tuple<Tensor, Tensor, Tensor> weighted_boxes_fusion(
    const Tensor& boxes, const Tensor& scores, const Tensor& labels, const Tensor& models,
    const std::vector<double>& weights, double iou_threshold, double score_threshold,
    const std::string& conf_type, bool allows_overflow) {
  check_weighted_boxes_fusion(boxes, scores, labels, models);
  const FusionRule rule = {weights, iou_threshold, score_threshold, parse_conf_type(conf_type),
                           allows_overflow};
  const auto dtype = box_dtype(boxes, scores);
  const Tensor boxes_in = box_input(boxes, dtype), scores_in = box_input(scores, dtype);
  const Tensor labels_in = torch::stable::contiguous(labels);
  const Tensor models_in = torch::stable::contiguous(models);
  const int64_t n = boxes.size(0);
  check_models(data<int64_t>(models_in), n, static_cast<int64_t>(weights.size()));
  const std::vector<FusedBox> fused = dispatch_box(dtype, [&]<typename T>() {
    const FusionInput<T> in = {data<Box<T>>(boxes_in), data<T>(scores_in), data<int64_t>(labels_in),
                               data<int64_t>(models_in), n};
    return fuse_boxes(in, rule, kTorchPool);
  });
  const auto num_fused = static_cast<int64_t>(fused.size());
  const Tensor boxes_out = empty(boxes, {num_fused, 4}, kFloat64);
  const Tensor scores_out = empty(boxes, {num_fused}, kFloat64);
  const Tensor labels_out = empty(boxes, {num_fused}, kInt64);
  for (int64_t i = 0; i < num_fused; ++i) {
    mutable_data<Box<double>>(boxes_out)[i] = fused[i].box;
    mutable_data<double>(scores_out)[i] = fused[i].score;
    mutable_data<int64_t>(labels_out)[i] = fused[i].label;
  }
  return {cast(boxes_out, boxes.scalar_type()), cast(scores_out, scores.scalar_type()), labels_out};
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) {
  m.impl("weighted_boxes_fusion", TORCH_BOX(&weighted_boxes_fusion));
}

}  // namespace fastdet::cpu
