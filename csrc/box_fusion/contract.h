// SPDX-License-Identifier: BSD-3-Clause
// The arguments that weighted boxes fusion accepts.
#pragma once

#include <string>

#include "../expect.h"
#include "fusion_rule.h"

namespace fastdet {

inline void check_weighted_boxes_fusion(const Argument& boxes, const Argument& scores,
                                        const Argument& labels, const Argument& models) {
  const char* op = "weighted_boxes_fusion";
  expect(is_boxes(boxes, 2), op, "boxes", "floating (N, 4)", boxes);
  expect(is_floating(scores) && scores.dim() == 1 && scores.size(0) == boxes.size(0), op, "scores",
         "floating (N,) with the N of boxes", scores);
  expect_same_device(op, "scores", scores, boxes);
  expect(is_integers(labels, boxes.size(0)), op, "labels", "int64 (N,) with the N of boxes",
         labels);
  expect_same_device(op, "labels", labels, boxes);
  expect(is_integers(models, boxes.size(0)), op, "models", "int64 (N,) with the N of boxes",
         models);
  expect_same_device(op, "models", models, boxes);
}

// The models index the weights.
inline void check_models(const int64_t* models, int64_t n, int64_t num_models) {
  for (int64_t i = 0; i < n; ++i)
    if (models[i] < 0 || models[i] >= num_models)
      refuse("weighted_boxes_fusion", "models",
             "indices of the " + std::to_string(num_models) + " weights",
             std::to_string(models[i]));
}

inline ConfType parse_conf_type(const std::string& name) {
  if (name == "avg") return ConfType::kAvg;
  if (name == "max") return ConfType::kMax;
  if (name == "box_and_model_avg") return ConfType::kBoxAndModelAvg;
  if (name == "absent_model_aware_avg") return ConfType::kAbsentModelAwareAvg;
  refuse("weighted_boxes_fusion", "conf_type",
         "avg, max, box_and_model_avg or absent_model_aware_avg", "'" + name + "'");
}

}  // namespace fastdet
