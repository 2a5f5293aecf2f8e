// SPDX-License-Identifier: BSD-3-Clause
// match_queries on torch's threads; query_matcher.h does the work.
#include <string>

#include "../host/parallel.h"
#include "query_matcher.h"

namespace fastdet::cpu {

Tensor match_queries(const Tensor& logits, const Tensor& boxes, const Tensor& gt_labels,
                     const Tensor& gt_boxes, const Tensor& gt_counts, double cost_class,
                     double cost_bbox, double cost_giou, double alpha, double gamma,
                     const std::string& kind, int64_t groups) {
  const QueryWeights weights = {cost_class, cost_bbox, cost_giou, alpha, gamma};
  check_match_queries(logits, boxes, gt_labels, gt_boxes, gt_counts, weights, groups);
  const ClassCost class_cost = parse_class_cost(kind);
  const Tensor index = empty_rows(logits, kInt64);
  if (index.numel() == 0) return index;
  const bool wide = box_dtype(boxes, gt_boxes) == kFloat64;
  const auto dtype = wide ? kFloat64 : logits.scalar_type();
  const Tensor logits_in = torch::stable::contiguous(cast(logits, dtype));
  const Tensor boxes_in = box_input(boxes, box_dtype(dtype));
  const Tensor gt_boxes_in = box_input(gt_boxes, box_dtype(dtype));
  const Tensor labels_in = torch::stable::contiguous(gt_labels);
  const Tensor counts_in = torch::stable::contiguous(gt_counts);
  const int64_t dim = logits.dim(), num_images = gt_labels.size(0),
                num_queries = logits.size(dim - 2);
  dispatch_floating(dtype, [&]<typename T>() {
    using Boxes = CentredBox<Sum<T>>;
    const QueryBatch<T> in = {data<T>(logits_in),
                              data<Boxes>(boxes_in),
                              data<int64_t>(labels_in),
                              data<Boxes>(gt_boxes_in),
                              data<int64_t>(counts_in),
                              index.numel() / (num_images * num_queries),
                              num_images,
                              num_queries,
                              logits.size(dim - 1),
                              gt_labels.size(1),
                              groups,
                              weights,
                              class_cost};
    match_query_batch(in, mutable_data<int64_t>(index), kTorchPool);
  });
  return index;
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) { m.impl("match_queries", TORCH_BOX(&match_queries)); }

}  // namespace fastdet::cpu
