// SPDX-License-Identifier: BSD-3-Clause
// The arguments that the operators of suppression and merging accept.
#pragma once

#include <optional>
#include <string>

#include "../expect.h"
#include "../geometry/overlap.h"
#include "soft_nms_rule.h"

namespace fastdet {

inline void check_nms(const char* op, const Argument& boxes, const Argument& scores) {
  expect(is_boxes(boxes, 2), op, "boxes", "floating (N, 4)", boxes);
  expect(is_floating(scores) && scores.dim() == 1 && scores.size(0) == boxes.size(0), op, "scores",
         "floating (N,) with the N of boxes", scores);
  expect_same_device(op, "scores", scores, boxes);
}

inline void check_batched_nms(const char* op, const Argument& boxes, const Argument& scores,
                              const Argument& idxs) {
  check_nms(op, boxes, scores);
  expect(is_integers(idxs, boxes.size(0)), op, "idxs", "int64 (N,) with the N of boxes", idxs);
  expect_same_device(op, "idxs", idxs, boxes);
}

inline void check_labelled(const char* op, const Argument& boxes, const Argument& scores,
                           const std::optional<Argument>& labels) {
  check_nms(op, boxes, scores);
  if (!labels) return;
  expect(is_integers(*labels, boxes.size(0)), op, "labels", "int64 (N,) with the N of boxes",
         *labels);
  expect_same_device(op, "labels", *labels, boxes);
}

inline OverlapMetric parse_overlap_metric(const char* op, const std::string& name) {
  if (name == "iou") return OverlapMetric::kIou;
  if (name == "ios") return OverlapMetric::kIos;
  refuse(op, "metric", "iou or ios", "'" + name + "'");
}

inline SoftNmsMethod parse_soft_nms_method(const std::string& name) {
  if (name == "linear") return SoftNmsMethod::kLinear;
  if (name == "gaussian") return SoftNmsMethod::kGaussian;
  refuse("soft_nms", "method", "linear or gaussian", "'" + name + "'");
}

inline void check_nms_padded(const char* op, const Argument& boxes, const Argument& scores,
                             int64_t max_keep, const std::optional<Argument>& groups,
                             const std::optional<Argument>& counts) {
  expect(is_boxes(boxes, 3), op, "boxes", "floating (B, N, 4)", boxes);
  const auto fits = [&](const Argument& t) {
    return t.dim() == 2 && t.size(0) == boxes.size(0) && t.size(1) == boxes.size(1);
  };
  expect(is_floating(scores) && fits(scores), op, "scores",
         "floating (B, N) with the B and N of boxes", scores);
  expect_same_device(op, "scores", scores, boxes);
  expect_not_negative(op, "max_keep", max_keep);
  if (groups) {
    expect(groups->scalar_type() == kInt64 && fits(*groups), op, "groups",
           "int64 (B, N) with the B and N of boxes", *groups);
    expect_same_device(op, "groups", *groups, boxes);
  }
  if (counts) {
    expect(is_integers(*counts, boxes.size(0)), op, "counts", "int64 (B,) with the B of boxes",
           *counts);
    expect_same_device(op, "counts", *counts, boxes);
  }
}

}  // namespace fastdet
