// SPDX-License-Identifier: BSD-3-Clause
// The arguments that the detection operators accept.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "../expect.h"
#include "../geometry/pyramid.h"

namespace fastdet {

// `argument` is the name of `logits`. Each level of it is (B, A_l), or (B, A_l, C) if `dim` is 3.
inline void check_pyramid_head(const char* op, const char* argument,
                               const std::vector<Argument>& logits, int64_t dim,
                               const std::vector<Argument>& deltas, const Argument& anchors,
                               const Argument& sizes) {
  if (logits.empty() || logits.size() > kMaxLevels)
    refuse(op, argument, "1 to " + std::to_string(kMaxLevels) + " levels",
           std::to_string(logits.size()));
  if (deltas.size() != logits.size())
    refuse(op, "deltas", "one for each level, " + std::to_string(logits.size()),
           std::to_string(deltas.size()));
  const Argument& first = logits[0];
  int64_t num_anchors = 0;
  for (size_t l = 0; l < logits.size(); ++l) {
    const Argument &level = logits[l], &own = deltas[l];
    expect(is_floating(level) && level.dim() == dim, op, argument,
           dim == 3 ? "floating (B, A, C) for each level" : "floating (B, A) for each level",
           level);
    expect(level.scalar_type() == first.scalar_type() && level.size(0) == first.size(0) &&
               (dim == 2 || level.size(2) == first.size(2)),
           op, argument, "the dtype, B and C of the first level", level);
    expect_same_device(op, argument, level, first);
    expect(own.scalar_type() == first.scalar_type() && own.dim() == 3 &&
               own.size(0) == first.size(0) && own.size(1) == level.size(1) && own.size(2) == 4,
           op, "deltas", "(B, A, 4) with the B and A of the level's logits, and their dtype", own);
    expect_same_device(op, "deltas", own, first);
    num_anchors += level.size(1);
  }
  expect(is_boxes(anchors, 2) && anchors.size(0) == num_anchors, op, "anchors",
         "floating (A, 4), where A counts all levels", anchors);
  expect_same_device(op, "anchors", anchors, first);
  expect(is_sizes(sizes, first.size(0)), op, "sizes", "int64 (B, 2) with the B of the first level",
         sizes);
  expect_same_device(op, "sizes", sizes, first);
}

inline void check_roi_detections(const Argument& logits, const Argument& deltas,
                                 const Argument& proposals, const std::optional<Argument>& counts,
                                 const Argument& sizes, int64_t detections_per_img) {
  const char* op = "roi_detections";
  expect(is_floating(logits) && logits.dim() == 3 && logits.size(2) > 0, op, "logits",
         "floating (B, K, C) with C above 0", logits);
  const auto per_roi = [&](const Argument& t, int64_t dim) {
    return t.dim() == dim && t.size(0) == logits.size(0) && t.size(1) == logits.size(1) &&
           t.size(dim - 1) == 4;
  };
  expect(deltas.scalar_type() == logits.scalar_type() && per_roi(deltas, 4) &&
             deltas.size(2) == logits.size(2),
         op, "deltas", "(B, K, C, 4) with the dtype, B, K and C of logits", deltas);
  expect(is_floating(proposals) && per_roi(proposals, 3), op, "proposals",
         "floating (B, K, 4) with the B and K of logits", proposals);
  expect(is_sizes(sizes, logits.size(0)), op, "sizes", "int64 (B, 2) with the B of logits", sizes);
  expect_same_device(op, "deltas", deltas, logits);
  expect_same_device(op, "proposals", proposals, logits);
  expect_same_device(op, "sizes", sizes, logits);
  if (counts) {
    expect(is_integers(*counts, logits.size(0)), op, "counts", "int64 (B,) with the B of logits",
           *counts);
    expect_same_device(op, "counts", *counts, logits);
  }
  expect_not_negative(op, "detections_per_img", detections_per_img);
}

// scores: (N, C), or (C, N) if `by_class`.
inline void check_multiclass_nms(const char* op, const Argument& boxes, const Argument& scores,
                                 bool by_class) {
  expect(is_boxes(boxes, 2), op, "boxes", "floating (N, 4)", boxes);
  expect(is_floating(scores) && scores.dim() == 2 && scores.size(by_class ? 1 : 0) == boxes.size(0),
         op, "scores",
         by_class ? "floating (N, C) with the N of boxes, here transposed"
                  : "floating (N, C) with the N of boxes",
         scores);
}

}  // namespace fastdet
