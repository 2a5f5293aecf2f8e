// SPDX-License-Identifier: BSD-3-Clause
// Non-maximum merging for torch tensors on the CPU; nmm.h does the work. Groups run in parallel.
#include "nmm.h"

#include "../geometry/threshold.h"
#include "../host/parallel.h"
#include "contract.h"

namespace fastdet::cpu {

std::tuple<Tensor, Tensor> nmm(const Tensor& boxes, const Tensor& scores,
                               const std::optional<Tensor>& labels, double threshold,
                               const std::string& metric, bool transitive) {
  check_labelled("nmm", boxes, scores, labels);
  const OverlapMetric overlap = parse_overlap_metric("nmm", metric);
  const auto dtype = box_dtype(boxes);
  const Tensor boxes_in = box_input(boxes, dtype), scores_in = box_input(scores, dtype);
  const std::optional<Tensor> labels_in = contiguous(labels);
  const int64_t n = boxes.size(0);
  const Tensor index = empty(boxes, {n}, kInt64), merged = empty(boxes, {n, 4}, dtype);
  dispatch_box(dtype, [&]<typename T>() {
    const NmsInput<T> in = {data<Box<T>>(boxes_in), data<T>(scores_in),
                            labels_in ? data<int64_t>(*labels_in) : nullptr, n};
    const NmmRule<T> rule = {overlap, just_below<T>(threshold), transitive};
    merge_boxes(in, rule, mutable_data<int64_t>(index), mutable_data<Box<T>>(merged), kTorchPool);
  });
  return {index, cast(merged, boxes.scalar_type())};
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) { m.impl("nmm", TORCH_BOX(&nmm)); }

}  // namespace fastdet::cpu
