// SPDX-License-Identifier: BSD-3-Clause
// The loops of non-maximum merging: which of 32 boxes does a box overlap, and which of 32 hulls may
// hold such a box?
#pragma once

#include <cstdint>

#include "../geometry/box_planes.h"
#include "../geometry/overlap.h"
#include "../isa/loops.h"

namespace fastdet::cpu {

constexpr int64_t kBundle = 32;  // boxes, and bundles of a bale

// The bounding boxes of several sets of boxes, and the ranges of their areas.
template <typename T>
struct HullPlanes {
  T *x1, *y1, *x2, *y2, *least, *most;
};

// A box whose overlapping boxes are searched. Boxes overlap if their metric is above the threshold.
template <typename T>
struct Seeker {
  Box<T> box;
  T area, threshold;
  T filter;         // the intersection with an overlapping box exceeds filter * denominator
  T share;          // and each area is more than this times the other
  T width, height;  // and the intersection is wider and higher than these
};

// T is float or double.
template <typename T>
struct FASTDET_EXPORT NmmLoops {
  // Which hulls of [first, first + kBundle) may hold an overlapping box, as bits.
  uint32_t (*near)(const HullPlanes<T>& hulls, int64_t first, const Seeker<T>& seeker);

  // Which boxes of [first, first + kBundle) overlap the seeker, as bits.
  uint32_t (*overlapping)(OverlapMetric metric, const BoxPlanes<T>& boxes, int64_t first,
                          const Seeker<T>& seeker);
};

}  // namespace fastdet::cpu
