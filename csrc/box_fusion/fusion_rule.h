// SPDX-License-Identifier: BSD-3-Clause
// The rule of weighted boxes fusion: no torch.
#pragma once

#include <vector>

namespace fastdet {

// How the score of a fused box follows from those of its members; ensemble-boxes' names.
enum class ConfType { kAvg, kMax, kBoxAndModelAvg, kAbsentModelAwareAvg };

struct FusionRule {
  std::vector<double> weights;  // of the models
  double iou_threshold;         // a box joins a fused box if their IoU is above this
  double score_threshold;       // a box takes part if its score is at least this
  ConfType conf_type;
  bool allows_overflow;
};

}  // namespace fastdet
