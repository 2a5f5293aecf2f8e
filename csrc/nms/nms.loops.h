// SPDX-License-Identifier: BSD-3-Clause
// The loop of greedy NMS: does a box overlap a kept one?
#pragma once

#include <cstdint>

#include "../geometry/box.h"
#include "../geometry/box_planes.h"
#include "../isa/loops.h"

namespace fastdet::cpu {

// The kept boxes at places [begin, begin + count).
struct KeptRun {
  uint32_t begin, count;
};

constexpr int kNmsOverread = 16;

// If the computed IoU is above `iou`, the computed intersection is above `filter` times the union
// and above `share` times the sum of both areas.
template <typename T>
struct NmsThreshold {
  T iou, filter, share;
};

// T is float or double.
template <typename T>
struct FASTDET_EXPORT NmsLoops {
  int64_t lanes;  // boxes that one vector compares

  // Looks in the runs for a kept box whose IoU with `box` is above the threshold. Returns the place
  // at which the vector of that box begins, or -1. It may read up to kNmsOverread values beyond a
  // run, and ignores them.
  int64_t (*find_overlap)(const BoxPlanes<T>& kept, const KeptRun* runs, int64_t num_runs,
                          const Box<T>& box, T box_area, const NmsThreshold<T>& threshold);
};

}  // namespace fastdet::cpu
