// SPDX-License-Identifier: BSD-3-Clause
// DETR's matching on the CPU. A thread takes one problem after another: the queries of one layer,
// image and group with the image's gts. The problem's costs, and nothing more, are in its own
// memory. Plain C++ over pointers, without torch.
//
// A class cost is computed once for each query and label that occurs in the image, not for all
// classes. Each gt is a row of costs over the queries, which fill the vectors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../detections/softmax.loops.h"
#include "../geometry/numbers.h"
#include "assignment_scratch.h"
#include "contract.h"
#include "match_queries.loops.h"

namespace fastdet::cpu {

// T is the type of the logits.
template <typename T>
struct QueryBatch {
  using S = Sum<T>;

  const T* logits;                // (L, B, Q, C)
  const CentredBox<S>* boxes;     // (L, B, Q)
  const int64_t* gt_labels;       // (B, G)
  const CentredBox<S>* gt_boxes;  // (B, G)
  const int64_t* gt_counts;       // (B,)
  int64_t num_layers, num_images, num_queries, num_classes, num_gts;
  int64_t num_groups;
  QueryWeights weights;
  ClassCost kind;
};

template <typename T>
class QueryMatcher {
 public:
  using S = Sum<T>;

  explicit QueryMatcher(const QueryBatch<T>& in)
      : in_(in),
        loops_(current_loops<QueryLoops<S>>()),
        num_queries_(in.num_queries / in.num_groups),
        stride_((num_queries_ + kAssignmentLanes - 1) / kAssignmentLanes * kAssignmentLanes),
        boxes_(kPlanes * stride_) {
    double* next = boxes_.data();
    for (double** plane : {&planes_.x, &planes_.y, &planes_.width, &planes_.height, &planes_.x1,
                           &planes_.y1, &planes_.x2, &planes_.y2, &planes_.area}) {
      *plane = next;
      next += stride_;
    }
  }

  // Problems count by layer, then by image, then by group.
  void match(int64_t problem, int64_t* index) {
    std::fill_n(index, num_queries_, int64_t(-1));
    image_ = problem / in_.num_groups % in_.num_images;
    num_gts_ = std::clamp(in_.gt_counts[image_], int64_t(0), in_.num_gts);
    if (num_gts_ == 0 || num_queries_ == 0) return;
    const int64_t first = problem * num_queries_;  // groups are neighbours
    compute_class_costs(in_.logits + first * in_.num_classes);
    loops_.load_queries(in_.boxes + first, num_queries_, planes_);
    const bool more_gts = num_gts_ > num_queries_;
    if (more_gts)
      cost_.resize(num_gts_ * stride_);
    else
      assignment_.resize(num_gts_, num_queries_);
    compute_costs(
        [&](int64_t g) { return more_gts ? cost_.data() + g * stride_ : assignment_.row(g); });
    if (more_gts) assignment_.load(cost_.data(), num_gts_, num_queries_, stride_);
    query_of_gt_.resize(num_gts_);
    assignment_.solve(query_of_gt_.data());
    for (int64_t g = 0; g < num_gts_; ++g)
      if (query_of_gt_[g] >= 0) index[query_of_gt_[g]] = g;
  }

 private:
  static constexpr int64_t kPlanes = 9;
  static constexpr int64_t kNoLabel = -1;

  // Numbers the labels of the image in the order of their first gt.
  void number_labels() {
    const int64_t* const labels = in_.gt_labels + image_ * in_.num_gts;
    labels_.clear();
    label_of_gt_.resize(num_gts_);
    number_of_class_.assign(in_.num_classes, kNoLabel);
    for (int64_t g = 0; g < num_gts_; ++g) {
      label_of_gt_[g] = kNoLabel;
      if (labels[g] < 0 || labels[g] >= in_.num_classes) continue;
      int64_t& number = number_of_class_[labels[g]];
      if (number == kNoLabel) {
        number = static_cast<int64_t>(labels_.size());
        labels_.push_back(labels[g]);
      }
      label_of_gt_[g] = number;
    }
  }

  // class_costs_: a row over the queries for each label, and one of NaN for unknown labels.
  void compute_class_costs(const T* logits) {
    number_labels();
    const int64_t num_labels = static_cast<int64_t>(labels_.size());
    class_costs_.resize((num_labels + 1) * stride_);
    std::fill_n(class_costs_.end() - stride_, stride_, std::numeric_limits<S>::quiet_NaN());
    probabilities_.resize(in_.num_classes);
    const bool softmax = in_.kind == ClassCost::kSoftmax;
    for (int64_t q = 0; q < num_queries_; ++q, logits += in_.num_classes) {
      if (softmax)
        current_loops<SoftmaxLoops<T>>().softmax(logits, in_.num_classes, probabilities_.data());
      for (int64_t k = 0; k < num_labels; ++k)
        class_costs_[k * stride_ + q] =
            softmax ? -probabilities_[labels_[k]] : static_cast<S>(logits[labels_[k]]);
    }
    if (softmax) return;
    const S alpha = static_cast<S>(in_.weights.alpha), gamma = static_cast<S>(in_.weights.gamma);
    for (int64_t k = 0; k < num_labels; ++k)
      loops_.focal_costs(class_costs_.data() + k * stride_, num_queries_, alpha, gamma);
  }

  // `row(g)` is the memory for the costs of gt g.
  template <typename Row>
  void compute_costs(const Row& row) {
    const int64_t num_labels = static_cast<int64_t>(labels_.size());
    bool finite = true;
    for (int64_t g = 0; g < num_gts_; ++g) {
      const int64_t label = label_of_gt_[g] == kNoLabel ? num_labels : label_of_gt_[g];
      finite &= loops_.costs_of_gt(planes_, in_.gt_boxes[image_ * in_.num_gts + g],
                                   class_costs_.data() + label * stride_, num_queries_, in_.weights,
                                   row(g));
    }
    if (!finite) make_finite(row);
  }

  // Costs that are not finite become the largest finite one, or 0 without any.
  template <typename Row>
  void make_finite(const Row& row) {
    bool found = false;
    double largest = 0;
    for (int64_t g = 0; g < num_gts_; ++g)
      for (int64_t q = 0; q < num_queries_; ++q) {
        const double cost = row(g)[q];
        if (!is_finite(cost) || (found && cost <= largest)) continue;
        largest = cost;
        found = true;
      }
    for (int64_t g = 0; g < num_gts_; ++g)
      std::replace_if(
          row(g), row(g) + num_queries_, [](double cost) { return !is_finite(cost); }, largest);
  }

  const QueryBatch<T>& in_;
  const QueryLoops<S>& loops_;
  const int64_t num_queries_, stride_;  // of a group
  int64_t image_ = 0, num_gts_ = 0;     // of the problem
  std::vector<double> boxes_, cost_;
  QueryPlanes planes_;
  std::vector<S> class_costs_, probabilities_;
  std::vector<int64_t> labels_, label_of_gt_, number_of_class_, query_of_gt_;
  AssignmentScratch assignment_;
};

// Writes the gt of each query, or -1, to index (L, B, Q). `parallel(n, grain, body)` runs
// body(begin, end) for pieces of [0, n).
template <typename T, typename Parallel>
void match_query_batch(const QueryBatch<T>& in, int64_t* index, const Parallel& parallel) {
  constexpr int64_t kPairsOfAPiece = 1024;
  const int64_t num_problems = in.num_layers * in.num_images * in.num_groups;
  const int64_t num_queries = in.num_queries / in.num_groups;
  const int64_t pairs = std::max(int64_t(1), num_queries * in.num_gts);
  parallel(num_problems, std::max(int64_t(1), kPairsOfAPiece / pairs),
           [&](int64_t begin, int64_t end) {
             QueryMatcher<T> matcher(in);
             for (int64_t p = begin; p < end; ++p) matcher.match(p, index + p * num_queries);
           });
}

}  // namespace fastdet::cpu
