// SPDX-License-Identifier: BSD-3-Clause
// The arguments that match_anchors and sample_matches accept.
#pragma once

#include <string>

#include "../expect.h"
#include "match_rule.h"

namespace fastdet {

inline void check_match_anchors(const Argument& anchors, const Argument& gt_boxes,
                                const Argument& gt_counts) {
  const char* op = "match_anchors";
  expect(is_boxes(gt_boxes, 3), op, "gt_boxes", "floating (B, G, 4)", gt_boxes);
  expect(is_boxes(anchors, 2) || (is_boxes(anchors, 3) && anchors.size(0) == gt_boxes.size(0)), op,
         "anchors", "floating (A, 4), or (B, A, 4) with the B of gt_boxes", anchors);
  expect_same_device(op, "gt_boxes", gt_boxes, anchors);
  expect(is_integers(gt_counts, gt_boxes.size(0)), op, "gt_counts",
         "int64 (B,) with the B of gt_boxes", gt_counts);
  expect_same_device(op, "gt_counts", gt_counts, anchors);
}

inline LowQuality parse_low_quality(const std::string& name) {
  if (name == "none") return LowQuality::kNone;
  if (name == "anchor_best") return LowQuality::kAnchorBest;
  if (name == "gt_best") return LowQuality::kGtBest;
  refuse("match_anchors", "low_quality", "anchor_best, gt_best or none", "'" + name + "'");
}

inline void check_sample_matches(const Argument& index, const Argument& seeds, int64_t num) {
  const char* op = "sample_matches";
  expect(index.scalar_type() == kInt64 && index.dim() == 2, op, "index", "int64 (B, A)", index);
  expect(seeds.scalar_type() == kFloat64 && seeds.dim() == 1 && seeds.size(0) == index.size(0), op,
         "seeds", "float64 (B,) with the B of index", seeds);
  expect_same_device(op, "seeds", seeds, index);
  expect_not_negative(op, "num", num);
}

// The largest number of positives among num samples, rounded down as by Python's int().
inline int64_t sample_positives(int64_t num, double positive_fraction) {
  return static_cast<int64_t>(static_cast<double>(num) * positive_fraction);
}

}  // namespace fastdet
