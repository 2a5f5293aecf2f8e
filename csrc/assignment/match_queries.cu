// SPDX-License-Identifier: BSD-3-Clause
// DETR's matching on the device. One launch computes the costs, in float64, and another one solves
// the problems (block_assignment.cu). In the first, a thread has one query of one problem and goes
// over the gts of its image, so that neighbouring threads write neighbouring costs. The arithmetic
// is that of the CPU (query_cost.h, softmax.loops.cpp). No host sync.
//
// For 6 layers of 8 images, 300 queries, 30 gts and 80 classes the costs are 3.5 MB, which stay in
// the L2 cache, and 432k pairs of about 150 instructions: 10 us.
#include <string>

#include "../geometry/numbers.h"
#include "block_assignment.cuh"
#include "contract.h"
#include "query_cost.h"
#include "tensors.h"

namespace fastdet::cuda {

namespace {

// The number of partial sums in the CPU's softmax.
constexpr int kSoftmaxLanes = 16;

template <typename T>
struct QueryArguments {
  using S = Sum<T>;

  const T* logits;                // (P, Q, C), where Q are the queries of a group
  const CentredBox<S>* boxes;     // (P, Q)
  const int64_t* gt_labels;       // (B, G)
  const CentredBox<S>* gt_boxes;  // (B, G)
  int64_t num_images, num_classes, num_groups;
  QueryWeights weights;
  ClassCost kind;
  BlockAssignment assignment;  // of queries and gts
};

template <typename S>
__device__ MatchedBox matched_box(const CentredBox<S>& b) {
  return MatchedBox::of({static_cast<double>(b.x), static_cast<double>(b.y),
                         static_cast<double>(b.width), static_cast<double>(b.height)});
}

// The largest logit of a query and the sum of exp(logit - largest).
template <typename T>
struct Softmax {
  using S = Sum<T>;
  S largest, total;

  __device__ Softmax(const T* logits, int64_t n) : largest(-std::numeric_limits<S>::infinity()) {
    for (int64_t c = 0; c < n; ++c) largest = max_of(static_cast<S>(logits[c]), largest);
    S sums[kSoftmaxLanes] = {};
    for (int64_t begin = 0; begin < n; begin += kSoftmaxLanes) {
#pragma unroll
      for (int k = 0; k < kSoftmaxLanes; ++k)
        if (begin + k < n) sums[k] += exp_of(static_cast<S>(logits[begin + k]) - largest);
    }
#pragma unroll
    for (int half = kSoftmaxLanes / 2; half > 0; half >>= 1) {
#pragma unroll
      for (int k = 0; k < kSoftmaxLanes / 2; ++k)
        if (k < half) sums[k] += sums[k + half];
    }
    total = sums[0];
  }

  __device__ S operator()(S logit) const { return exp_of(logit - largest) / total; }
};

// The costs of one query; class_cost(logit) is its cost for the class of that logit.
template <typename T, typename ClassCosts>
__device__ void costs_of_query(const QueryArguments<T>& in, int64_t i,
                               const ClassCosts& class_cost) {
  using S = Sum<T>;
  const BlockAssignment& out = in.assignment;
  const int64_t problem = i / out.num_rows, query = i % out.num_rows;
  const int64_t first = problem / in.num_groups % in.num_images * out.num_columns;
  const int64_t num_gts = out.col_counts.of(problem, out.num_columns);
  const MatchedBox box = matched_box(in.boxes[i]);
  for (int64_t g = 0; g < num_gts; ++g) {
    const int64_t label = in.gt_labels[first + g];
    const bool known = label >= 0 && label < in.num_classes;
    const S cost = known ? class_cost(static_cast<S>(in.logits[i * in.num_classes + label]))
                         : std::numeric_limits<S>::quiet_NaN();
    out.cost[out.position(problem, query, g)] =
        query_cost(box, matched_box(in.gt_boxes[first + g]), static_cast<double>(cost), in.weights);
  }
}

template <typename T>
void compute_costs(const QueryArguments<T>& in, int64_t num_queries, cudaStream_t stream) {
  using S = Sum<T>;
  if (in.kind == ClassCost::kSoftmax) {
    for_each(num_queries, stream, [=] __device__(int64_t i) {
      const Softmax<T> softmax(in.logits + i * in.num_classes, in.num_classes);
      costs_of_query(in, i, [&](S logit) { return -softmax(logit); });
    });
    return;
  }
  const S alpha = static_cast<S>(in.weights.alpha), gamma = static_cast<S>(in.weights.gamma);
  if (gamma == S(2))
    for_each(num_queries, stream, [=] __device__(int64_t i) {
      costs_of_query(in, i, [&](S x) { return focal_class_cost<true>(x, alpha, gamma); });
    });
  else
    for_each(num_queries, stream, [=] __device__(int64_t i) {
      costs_of_query(in, i, [&](S x) { return focal_class_cost<false>(x, alpha, gamma); });
    });
}

}  // namespace

Tensor match_queries(const Tensor& logits, const Tensor& boxes, const Tensor& gt_labels,
                     const Tensor& gt_boxes, const Tensor& gt_counts, double cost_class,
                     double cost_bbox, double cost_giou, double alpha, double gamma,
                     const std::string& kind, int64_t groups) {
  const QueryWeights weights = {cost_class, cost_bbox, cost_giou, alpha, gamma};
  check_match_queries(logits, boxes, gt_labels, gt_boxes, gt_counts, weights, groups);
  const DeviceGuard guard(logits.get_device_index());
  const ClassCost class_cost = parse_class_cost(kind);
  const Tensor index = empty_rows(logits, kInt64);
  if (index.numel() == 0) return index;
  const QueryTensors tensors = query_tensors(logits, boxes, gt_labels, gt_boxes, gt_counts);
  const int64_t dim = logits.dim(), num_images = gt_labels.size(0), num_gts = gt_labels.size(1);
  const int64_t num_queries = logits.size(dim - 2) / groups;
  const int64_t num_problems = index.numel() / num_queries;
  const Tensor cost = empty(logits, {index.numel(), num_gts}, kFloat64);
  const BlockAssignment assignment = {mutable_data<double>(cost),
                                      {nullptr, 1, 1},
                                      {data<int64_t>(tensors.gt_counts), groups, num_images},
                                      num_queries,
                                      num_gts,
                                      true,
                                      mutable_data<int64_t>(index)};
  const cudaStream_t stream = current_stream(logits);
  dispatch_floating(tensors.dtype, [&]<typename T>() {
    using Boxes = CentredBox<Sum<T>>;
    const QueryArguments<T> arguments = {data<T>(tensors.logits),
                                         data<Boxes>(tensors.boxes),
                                         data<int64_t>(tensors.gt_labels),
                                         data<Boxes>(tensors.gt_boxes),
                                         num_images,
                                         logits.size(dim - 1),
                                         groups,
                                         weights,
                                         class_cost,
                                         assignment};
    compute_costs(arguments, index.numel(), stream);
  });
  solve_assignments(assignment, num_problems, logits, stream);
  return index;
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CUDA, m) { m.impl("match_queries", TORCH_BOX(&match_queries)); }

}  // namespace fastdet::cuda
