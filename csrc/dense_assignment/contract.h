// SPDX-License-Identifier: BSD-3-Clause
// The arguments that the dense assigners accept.
#pragma once

#include <limits>
#include <string>
#include <vector>

#include "../expect.h"
#include "../geometry/box.h"

namespace fastdet {

// The anchors that a gt can choose: a warp of the device keeps so many in its memory.
constexpr int64_t kMaxTopk = 256;
// The levels of a pyramid of anchors.
constexpr size_t kMaxAnchorLevels = 16;

// Anchors and gts of an image are numbered by 32-bit integers.
inline bool is_countable(const Argument& argument, int64_t dim) {
  return argument.size(dim) < std::numeric_limits<int32_t>::max();
}

inline void expect_topk(const char* op, const char* name, int64_t topk) {
  if (topk < 1 || topk > kMaxTopk)
    refuse(op, name, "a number in 1 .. " + std::to_string(kMaxTopk), std::to_string(topk));
}

// ---- assign_atss --------------------------------------------------------------------------------

inline void expect_level_sizes(const char* op, const std::vector<int64_t>& sizes,
                               int64_t num_anchors) {
  if (sizes.size() > kMaxAnchorLevels)
    refuse(op, "level_sizes", "at most " + std::to_string(kMaxAnchorLevels) + " levels",
           std::to_string(sizes.size()));
  int64_t sum = 0;
  for (const int64_t size : sizes) {
    expect_not_negative(op, "level_sizes", size);
    sum += size;
  }
  if (sum != num_anchors)
    refuse(op, "level_sizes", "numbers with the sum A = " + std::to_string(num_anchors),
           "the sum " + std::to_string(sum));
}

inline void check_assign_atss(const Argument& anchors, const std::vector<int64_t>& level_sizes,
                              const Argument& gt_boxes, const Argument& gt_counts, int64_t topk) {
  const char* op = "assign_atss";
  expect(is_boxes(anchors, 2) && is_countable(anchors, 0), op, "anchors", "floating (A, 4)",
         anchors);
  expect_level_sizes(op, level_sizes, anchors.size(0));
  expect(is_boxes(gt_boxes, 3) && is_countable(gt_boxes, 1), op, "gt_boxes", "floating (B, G, 4)",
         gt_boxes);
  expect_same_device(op, "gt_boxes", gt_boxes, anchors);
  expect(is_integers(gt_counts, gt_boxes.size(0)), op, "gt_counts",
         "int64 (B,) with the B of gt_boxes", gt_counts);
  expect_same_device(op, "gt_counts", gt_counts, anchors);
  expect_topk(op, "topk", topk);
}

// ---- assign_task_aligned, assign_simota ---------------------------------------------------------

// The predictions (scores and boxes) and points of the anchors, and the gts.
inline void check_predictions(const char* op, const Argument& scores, const Argument& boxes,
                              const Argument& points, const Argument& gt_labels,
                              const Argument& gt_boxes, const Argument& gt_counts) {
  expect(is_floating(scores) && scores.dim() == 3 && is_countable(scores, 1), op, "scores",
         "floating (B, A, C)", scores);
  expect(is_boxes(boxes, 3) && boxes.size(0) == scores.size(0) && boxes.size(1) == scores.size(1),
         op, "boxes", "floating (B, A, 4) with the B and A of scores", boxes);
  expect_same_device(op, "boxes", boxes, scores);
  expect(is_floating(points) && points.dim() == 2 && points.size(0) == scores.size(1) &&
             points.size(1) == 2,
         op, "points", "floating (A, 2) with the A of scores", points);
  expect_same_device(op, "points", points, scores);
  expect(gt_labels.scalar_type() == kInt64 && gt_labels.dim() == 2 &&
             gt_labels.size(0) == scores.size(0) && is_countable(gt_labels, 1),
         op, "gt_labels", "int64 (B, G) with the B of scores", gt_labels);
  expect_same_device(op, "gt_labels", gt_labels, scores);
  expect(is_boxes(gt_boxes, 3) && gt_boxes.size(0) == scores.size(0) &&
             gt_boxes.size(1) == gt_labels.size(1),
         op, "gt_boxes", "floating (B, G, 4) with the B and G of gt_labels", gt_boxes);
  expect_same_device(op, "gt_boxes", gt_boxes, scores);
  expect(is_integers(gt_counts, scores.size(0)), op, "gt_counts", "int64 (B,) with the B of scores",
         gt_counts);
  expect_same_device(op, "gt_counts", gt_counts, scores);
}

// The type of the scores as they are read: their own, or float64 if another input is float64. All
// else is computed in its box_dtype.
inline ScalarType prediction_dtype(const Argument& scores, const std::vector<Argument>& others) {
  for (const Argument& argument : others)
    if (argument.scalar_type() == kFloat64) return kFloat64;
  return scores.scalar_type();
}

inline bool is_float(double number) { return is_finite(static_cast<float>(number)); }

inline void expect_float(const char* op, const char* name, double number) {
  expect_number(is_float(number), op, name, "a finite number", number);
}

inline void expect_float_not_negative(const char* op, const char* name, double number) {
  expect_number(number >= 0 && is_float(number), op, name, "a finite number >= 0", number);
}

inline void check_assign_task_aligned(const Argument& scores, const Argument& boxes,
                                      const Argument& points, const Argument& gt_labels,
                                      const Argument& gt_boxes, const Argument& gt_counts,
                                      int64_t topk, double alpha, double beta, double min_side) {
  const char* op = "assign_task_aligned";
  check_predictions(op, scores, boxes, points, gt_labels, gt_boxes, gt_counts);
  expect_topk(op, "topk", topk);
  expect_float_not_negative(op, "alpha", alpha);
  expect_float_not_negative(op, "beta", beta);
  expect_float_not_negative(op, "min_side", min_side);
}

inline void check_assign_simota(const Argument& scores, const Argument& boxes,
                                const Argument& points, const Argument& strides,
                                const Argument& gt_labels, const Argument& gt_boxes,
                                const Argument& gt_counts, double center_radius,
                                int64_t candidate_topk, double cls_weight, double iou_weight) {
  const char* op = "assign_simota";
  check_predictions(op, scores, boxes, points, gt_labels, gt_boxes, gt_counts);
  expect(is_floating(strides) && strides.dim() == 1 && strides.size(0) == scores.size(1), op,
         "strides", "floating (A,) with the A of scores", strides);
  expect_same_device(op, "strides", strides, scores);
  expect_float_not_negative(op, "center_radius", center_radius);
  expect_topk(op, "candidate_topk", candidate_topk);
  expect_float(op, "cls_weight", cls_weight);
  expect_float(op, "iou_weight", iou_weight);
}

}  // namespace fastdet
