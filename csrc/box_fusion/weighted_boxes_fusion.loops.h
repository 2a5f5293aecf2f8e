// SPDX-License-Identifier: BSD-3-Clause
// The loop of weighted boxes fusion: which fused box does a new box overlap most?
#pragma once

#include <cstdint>

#include "../geometry/box.h"
#include "../geometry/box_planes.h"
#include "../isa/loops.h"

namespace fastdet::cpu {

constexpr int kFusionOverread = 8;  // values

struct FASTDET_EXPORT FusionLoops {
  // The place in [0, n) of the box with the highest IoU with `box` above the threshold, the lowest
  // such place, or -1. It may read up to kFusionOverread values beyond n, and ignores them.
  int64_t (*find_best)(const BoxPlanes<double>& fused, int64_t n, const Box<double>& box,
                       double box_area, double iou_threshold);
};

}  // namespace fastdet::cpu
