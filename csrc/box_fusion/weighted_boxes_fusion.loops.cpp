// SPDX-License-Identifier: BSD-3-Clause
// The fused box that overlaps a new box most. Most vectors of fused boxes fail the test
// intersection > best IoU * union, which needs no division.
#include "weighted_boxes_fusion.loops.h"

#include <limits>

#include "../isa/lanes.h"

namespace fastdet::cpu::FASTDET_ISA {

namespace {

using Numbers = Lanes<double>;

int64_t find_best(const BoxPlanes<double>& fused, int64_t n, const Box<double>& box,
                  double box_area, double iou_threshold) {
  constexpr int kLanes = kLanesOf<double>;
  static_assert(kLanes <= kFusionOverread);
  // Covers the rounding of the product.
  constexpr double kShrink = 1 - 4 * std::numeric_limits<double>::epsilon();
  const Numbers left = all_lanes(box.x1), top = all_lanes(box.y1);
  const Numbers right = all_lanes(box.x2), bottom = all_lanes(box.y2);
  double best = iou_threshold;
  int64_t found = -1;
  for (int64_t begin = 0; begin < n; begin += kLanes) {
    const Numbers x1 = load_lanes(fused.x1 + begin), y1 = load_lanes(fused.y1 + begin);
    const Numbers x2 = load_lanes(fused.x2 + begin), y2 = load_lanes(fused.y2 + begin);
    const Numbers width = (x2 < right ? x2 : right) - (x1 > left ? x1 : left);
    const Numbers height = (y2 < bottom ? y2 : bottom) - (y1 > top ? y1 : top);
    const Numbers inter = positive_part<double>(width) * positive_part<double>(height);
    const Numbers united = load_lanes(fused.area + begin) + box_area - inter;
    if (!any_greater<double>(inter, united * (best * kShrink))) continue;
    const Numbers iou = inter / united;
    for (int64_t i = begin; i < n && i < begin + kLanes; ++i)
      if (iou[i - begin] > best) best = iou[i - begin], found = i;
  }
  return found;
}

constexpr FusionLoops kLoops = {
    .find_best = find_best,
};

}  // namespace

FASTDET_LOOPS(FusionLoops) { return kLoops; }

}  // namespace fastdet::cpu::FASTDET_ISA
