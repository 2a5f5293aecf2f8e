// SPDX-License-Identifier: BSD-3-Clause
// The arguments that linear_assignment and match_queries accept.
#pragma once

#include <limits>
#include <optional>
#include <string>

#include "../expect.h"
#include "query_cost.h"

namespace fastdet {

// Rows and columns of a problem are numbered by 32-bit integers on the device.
inline bool is_countable(int64_t size) { return size < std::numeric_limits<int32_t>::max(); }

inline void expect_counts(const char* name, const std::optional<Argument>& counts,
                          const Argument& cost) {
  if (!counts) return;
  const char* op = "linear_assignment";
  bool fits = counts->scalar_type() == kInt64 && counts->dim() == cost.dim() - 2;
  for (int64_t d = 0; fits && d < counts->dim(); ++d) fits = counts->size(d) == cost.size(d);
  expect(fits, op, name, "int64 (...) with the leading dimensions of cost", *counts);
  expect_same_device(op, name, *counts, cost);
}

inline void check_linear_assignment(const Argument& cost, const std::optional<Argument>& row_counts,
                                    const std::optional<Argument>& col_counts) {
  expect(is_floating(cost) && cost.dim() >= 2 && is_countable(cost.size(cost.dim() - 2)) &&
             is_countable(cost.size(cost.dim() - 1)),
         "linear_assignment", "cost", "floating (..., R, C) with R and C below 2^31", cost);
  expect_counts("row_counts", row_counts, cost);
  expect_counts("col_counts", col_counts, cost);
}

inline void check_query_weights(const QueryWeights& weights) {
  const char *op = "match_queries", *finite = "a finite number";
  expect_number(is_finite(weights.by_class), op, "cost_class", finite, weights.by_class);
  expect_number(is_finite(weights.by_distance), op, "cost_bbox", finite, weights.by_distance);
  expect_number(is_finite(weights.by_giou), op, "cost_giou", finite, weights.by_giou);
  expect_number(weights.alpha >= 0 && weights.alpha <= 1, op, "alpha", "a number in [0, 1]",
                weights.alpha);
  expect_number(weights.gamma >= 0 && is_finite(weights.gamma), op, "gamma", "a finite number >= 0",
                weights.gamma);
}

// How a query's logits become its cost for a class.
enum class ClassCost { kFocal, kSoftmax };

inline ClassCost parse_class_cost(const std::string& name) {
  if (name == "focal") return ClassCost::kFocal;
  if (name == "softmax") return ClassCost::kSoftmax;
  refuse("match_queries", "kind", "focal or softmax", "'" + name + "'");
}

inline void check_match_queries(const Argument& logits, const Argument& boxes,
                                const Argument& gt_labels, const Argument& gt_boxes,
                                const Argument& gt_counts, const QueryWeights& weights,
                                int64_t groups) {
  const char* op = "match_queries";
  expect(is_floating(logits) && logits.dim() >= 3 && is_countable(logits.size(logits.dim() - 2)),
         op, "logits", "floating (..., B, Q, C)", logits);
  bool fits = is_boxes(boxes, logits.dim());
  for (int64_t d = 0; fits && d + 1 < logits.dim(); ++d) fits = boxes.size(d) == logits.size(d);
  expect(fits, op, "boxes", "floating (..., B, Q, 4) with the ..., B and Q of logits", boxes);
  expect_same_device(op, "boxes", boxes, logits);
  const int64_t num_images = logits.size(logits.dim() - 3),
                num_queries = boxes.size(boxes.dim() - 2);
  expect(gt_labels.scalar_type() == kInt64 && gt_labels.dim() == 2 &&
             gt_labels.size(0) == num_images && is_countable(gt_labels.size(1)),
         op, "gt_labels", "int64 (B, G) with the B of logits", gt_labels);
  expect_same_device(op, "gt_labels", gt_labels, logits);
  expect(is_boxes(gt_boxes, 3) && gt_boxes.size(0) == num_images &&
             gt_boxes.size(1) == gt_labels.size(1),
         op, "gt_boxes", "floating (B, G, 4) with the B and G of gt_labels", gt_boxes);
  expect_same_device(op, "gt_boxes", gt_boxes, logits);
  expect(is_integers(gt_counts, num_images), op, "gt_counts", "int64 (B,) with the B of logits",
         gt_counts);
  expect_same_device(op, "gt_counts", gt_counts, logits);
  check_query_weights(weights);
  if (groups < 1 || num_queries % groups != 0)
    refuse(op, "groups", "a divisor of Q = " + std::to_string(num_queries), std::to_string(groups));
}

}  // namespace fastdet
