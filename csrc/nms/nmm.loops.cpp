// SPDX-License-Identifier: BSD-3-Clause
// Tests of a box against 32 hulls, and against 32 boxes. Most vectors of boxes fail the test
// intersection > filter * denominator, which needs no division. The overlap is computed only if a
// lane passes; its quotient has the same operands in the same order as in iou(), and so the same
// bits.
#include "nmm.loops.h"

#include "../isa/lanes.h"

namespace fastdet::cpu::FASTDET_ISA {

namespace {

template <typename T>
uint32_t near(const HullPlanes<T>& hulls, int64_t first, const Seeker<T>& seeker) {
  const Box<T>& box = seeker.box;
  const T least_area = seeker.share * seeker.area;
  uint32_t found = 0;
  for (int i = 0; i < kBundle; i += kLanesOf<T>) {
    const auto at = [&](const T* plane) __attribute__((always_inline)) {
      return load_lanes(plane + first + i);
    };
    const LaneMask<T> touches = (at(hulls.x2) - box.x1 > seeker.width) &
                                (box.x2 - at(hulls.x1) > seeker.width) &
                                (at(hulls.y2) - box.y1 > seeker.height) &
                                (box.y2 - at(hulls.y1) > seeker.height);
    const LaneMask<T> fits =
        (at(hulls.most) > least_area) & (at(hulls.least) * seeker.share < seeker.area);
    found |= lane_bits(touches & fits) << i;
  }
  return found;
}

template <OverlapMetric metric, typename T>
uint32_t overlapping_by(const BoxPlanes<T>& boxes, int64_t first, const Seeker<T>& seeker) {
  const Box<T>& box = seeker.box;
  const Lanes<T> left = all_lanes(box.x1), top = all_lanes(box.y1);
  const Lanes<T> right = all_lanes(box.x2), bottom = all_lanes(box.y2);
  const Lanes<T> own_area = all_lanes(seeker.area);
  uint32_t found = 0;
  for (int i = 0; i < kBundle; i += kLanesOf<T>) {
    const auto at = [&](const T* plane) __attribute__((always_inline)) {
      return load_lanes(plane + first + i);
    };
    const Lanes<T> x1 = at(boxes.x1), y1 = at(boxes.y1), x2 = at(boxes.x2), y2 = at(boxes.y2);
    const Lanes<T> width = (x2 < right ? x2 : right) - (x1 > left ? x1 : left);
    const Lanes<T> height = (y2 < bottom ? y2 : bottom) - (y1 > top ? y1 : top);
    // A negative height makes the product negative or 0, which the filter rejects too.
    const Lanes<T> inter = positive_part<T>(width) * height;
    const Lanes<T> areas = at(boxes.area);
    const Lanes<T> denominator = metric == OverlapMetric::kIos
                                     ? (areas < own_area ? areas : own_area)
                                     : areas + own_area - inter;
    const Lanes<T> bound = denominator * seeker.filter;
    if (!any_greater<T>(inter, bound)) continue;
    const LaneMask<T> above = inter / denominator > all_lanes(seeker.threshold);
    found |= lane_bits((inter > bound) & above) << i;
  }
  return found;
}

template <typename T>
uint32_t overlapping(OverlapMetric metric, const BoxPlanes<T>& boxes, int64_t first,
                     const Seeker<T>& seeker) {
  return metric == OverlapMetric::kIos
             ? overlapping_by<OverlapMetric::kIos>(boxes, first, seeker)
             : overlapping_by<OverlapMetric::kIou>(boxes, first, seeker);
}

template <typename T>
constexpr NmmLoops<T> kLoops = {
    .near = near<T>,
    .overlapping = overlapping<T>,
};

}  // namespace

FASTDET_LOOPS(NmmLoops<float>) { return kLoops<float>; }
FASTDET_LOOPS(NmmLoops<double>) { return kLoops<double>; }

}  // namespace fastdet::cpu::FASTDET_ISA
