// SPDX-License-Identifier: BSD-3-Clause
// match_queries on torch's threads; query_matcher.h does the work.
#include <string>

#include "../host/parallel.h"
#include "query_matcher.h"
#include "tensors.h"

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
  const QueryTensors tensors = query_tensors(logits, boxes, gt_labels, gt_boxes, gt_counts);
  const int64_t dim = logits.dim(), num_images = gt_labels.size(0),
                num_queries = logits.size(dim - 2);
  dispatch_floating(tensors.dtype, [&]<typename T>() {
    using Boxes = CentredBox<Sum<T>>;
    const QueryBatch<T> in = {data<T>(tensors.logits),
                              data<Boxes>(tensors.boxes),
                              data<int64_t>(tensors.gt_labels),
                              data<Boxes>(tensors.gt_boxes),
                              data<int64_t>(tensors.gt_counts),
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
