// SPDX-License-Identifier: BSD-3-Clause
// The loop of Soft-NMS: lowers scores by the overlap with the picked box.
#pragma once

#include <cstdint>

#include "../geometry/box.h"
#include "../geometry/box_planes.h"
#include "../isa/loops.h"
#include "soft_nms_rule.h"

namespace fastdet::cpu {

// T is float or double.
template <typename T>
struct FASTDET_EXPORT SoftNmsLoops {
  // Lowers scores[0, n) by the overlap with `picked`; the score of a removed box is -1. Returns the
  // highest score.
  T (*decay_scores)(const SoftNmsRule<T>& rule, const Box<T>& picked, T picked_area,
                    const BoxPlanes<T>& boxes, int64_t n, T* scores);
};

}  // namespace fastdet::cpu
