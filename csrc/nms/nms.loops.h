// SPDX-License-Identifier: BSD-3-Clause
// The loop of greedy NMS: does a box overlap a kept one?
#pragma once

#include <cstdint>

#include "../geometry/box.h"
#include "../geometry/box_planes.h"
#include "../isa/loops.h"

namespace fastdet::cpu {

// The places [begin, begin + count) of kept boxes.
struct KeptRun {
  uint32_t begin, count;
};

constexpr int kNmsOverread = 16;

// An IoU above `iou` implies an intersection above `filter` times the union, as computed.
template <typename T>
struct NmsThreshold {
  T iou, filter;
};

// T is float or double.
template <typename T>
struct FASTDET_EXPORT NmsLoops {
  int64_t lanes;  // boxes that are compared together

  // Where a kept box in the runs overlaps `box` by an IoU above the threshold: the place at which
  // its vector begins, or -1. Reads, and ignores, up to kNmsOverread values beyond a run.
  int64_t (*find_overlap)(const BoxPlanes<T>& kept, const KeptRun* runs, int64_t num_runs,
                          const Box<T>& box, T box_area, const NmsThreshold<T>& threshold);
};

}  // namespace fastdet::cpu
