// SPDX-License-Identifier: BSD-3-Clause
// Whether a box overlaps a kept one. Most vectors of kept boxes fail the test intersection >
// share * (area + area), which needs neither the union nor a division. The IoU is computed only if
// a lane passes. The loop uses explicit vectors, because a run of kept boxes is often shorter than
// the blocks that GCC makes of a plain loop.
#include "nms.loops.h"

#include "../isa/lanes.h"

namespace fastdet::cpu::FASTDET_ISA {

namespace {

// Whether `box` overlaps a kept box of [begin, end), which is at most one vector. A negative height
// needs no clamp: it makes the product negative or 0, which the filter rejects too. If a lane
// passes, its quotient has the same operands in the same order as in iou(), and so the same bits.
template <typename T>
__attribute__((always_inline)) inline bool overlaps_lane(const BoxPlanes<T>& kept, int64_t begin,
                                                         int64_t end, const Box<T>& box, T box_area,
                                                         const NmsThreshold<T>& threshold) {
  const Lanes<T> left = all_lanes(box.x1), top = all_lanes(box.y1);
  const Lanes<T> right = all_lanes(box.x2), bottom = all_lanes(box.y2);
  const Lanes<T> x1 = load_lanes(kept.x1 + begin), y1 = load_lanes(kept.y1 + begin);
  const Lanes<T> x2 = load_lanes(kept.x2 + begin), y2 = load_lanes(kept.y2 + begin);
  // Differences as a * 1 - b: AMD's processors multiply beside minima and comparisons, which take
  // the units that subtract.
  const Lanes<T> one = all_lanes(T(1));
  const Lanes<T> width = multiply_add<T>(x2 < right ? x2 : right, one, -(x1 > left ? x1 : left));
  const Lanes<T> height = multiply_add<T>(y2 < bottom ? y2 : bottom, one, -(y1 > top ? y1 : top));
  const Lanes<T> inter = positive_part<T>(width) * height;
  const Lanes<T> area = load_lanes(kept.area + begin);
  const Lanes<T> bound =
      multiply_add<T>(area, all_lanes(threshold.share), all_lanes(threshold.share * box_area));
  if (!any_greater<T>(inter, bound)) return false;
  const Lanes<T> united = area + box_area - inter;
  LaneMask<T> lane = {};
  for (int i = 0; i < kLanesOf<T>; ++i) lane[i] = i;
  const LaneMask<T> overlaps = inter / united > all_lanes(threshold.iou);
  return any_lane((inter > bound) & overlaps & (lane < static_cast<int>(end - begin)));
}

template <typename T>
int64_t find_overlap(const BoxPlanes<T>& kept, const KeptRun* runs, int64_t num_runs,
                     const Box<T>& box, T box_area, const NmsThreshold<T>& threshold) {
  static_assert(kLanesOf<T> <= kNmsOverread);
  for (int64_t r = 0; r < num_runs; ++r) {
    const int64_t end = int64_t(runs[r].begin) + runs[r].count;
    for (int64_t i = runs[r].begin; i < end; i += kLanesOf<T>)
      if (overlaps_lane(kept, i, end, box, box_area, threshold)) return i;
  }
  return -1;
}

template <typename T>
constexpr NmsLoops<T> kLoops = {
    .lanes = kLanesOf<T>,
    .find_overlap = find_overlap<T>,
};

}  // namespace

FASTDET_LOOPS(NmsLoops<float>) { return kLoops<float>; }
FASTDET_LOOPS(NmsLoops<double>) { return kLoops<double>; }

}  // namespace fastdet::cpu::FASTDET_ISA
