// SPDX-License-Identifier: BSD-3-Clause
// The loop of Soft-NMS: lowers scores by the overlap with the picked box.
#pragma once

#include <cstdint>

#include "../geometry/box.h"
#include "../geometry/box_planes.h"
#include "../isa/loops.h"

namespace fastdet::cpu {

enum class SoftNmsMethod { kLinear, kGaussian };

// How the overlap with a picked box lowers a score: the score is multiplied by 1 - IoU if the IoU
// is >= iou_threshold (linear), or by exp(-IoU^2 / sigma) (Gaussian). A box is removed if its score
// is below score_threshold, which is >= 0.
template <typename T>
struct SoftNmsRule {
  SoftNmsMethod method;
  T iou_threshold, sigma, score_threshold;
};

// T is float or double.
template <typename T>
struct FASTDET_EXPORT SoftNmsLoops {
  // Lowers scores[0, n) by the overlap with `picked`; the score of a removed box is -1. Returns the
  // highest score.
  T (*decay_scores)(const SoftNmsRule<T>& rule, const Box<T>& picked, T picked_area,
                    const BoxPlanes<T>& boxes, int64_t n, T* scores);
};

}  // namespace fastdet::cpu
