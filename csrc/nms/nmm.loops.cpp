// SPDX-License-Identifier: BSD-3-Clause
// The boxes that a box overlaps. Most vectors of boxes fail the test intersection > filter *
// denominator, which needs no division. The overlap is computed only if a lane passes; its quotient
// has the same operands in the same order as in iou(), and so the same bits.
#include "nmm.loops.h"

#include "../isa/lanes.h"

namespace fastdet::cpu::FASTDET_ISA {

namespace {

// The lanes of the boxes from `i` on that overlap the seeker, as bits.
template <OverlapMetric metric, typename T>
__attribute__((always_inline)) inline uint32_t overlapping_lanes(const BoxPlanes<T>& boxes,
                                                                 int64_t i,
                                                                 const Seeker<T>& seeker) {
  const Lanes<T> left = all_lanes(seeker.box.x1), top = all_lanes(seeker.box.y1);
  const Lanes<T> right = all_lanes(seeker.box.x2), bottom = all_lanes(seeker.box.y2);
  const Lanes<T> x1 = load_lanes(boxes.x1 + i), y1 = load_lanes(boxes.y1 + i);
  const Lanes<T> x2 = load_lanes(boxes.x2 + i), y2 = load_lanes(boxes.y2 + i);
  const Lanes<T> width = (x2 < right ? x2 : right) - (x1 > left ? x1 : left);
  const Lanes<T> height = (y2 < bottom ? y2 : bottom) - (y1 > top ? y1 : top);
  // A negative height makes the product negative or 0, which the filter rejects too.
  const Lanes<T> inter = positive_part<T>(width) * height;
  const Lanes<T> areas = load_lanes(boxes.area + i), own_area = all_lanes(seeker.area);
  const Lanes<T> denominator = metric == OverlapMetric::kIos ? (areas < own_area ? areas : own_area)
                                                             : areas + own_area - inter;
  const Lanes<T> bound = denominator * seeker.filter;
  if (!any_greater<T>(inter, bound)) return 0;
  const LaneMask<T> above = inter / denominator > all_lanes(seeker.threshold);
  return lane_bits((inter > bound) & above);
}

// The 64 bits from bit `i` on.
__attribute__((always_inline)) inline uint64_t bits_from(const uint64_t* words, int64_t i) {
  const uint64_t low = words[i / 64] >> i % 64;
  return i % 64 ? low | words[i / 64 + 1] << (64 - i % 64) : low;
}

template <OverlapMetric metric, typename T>
int64_t find_by(const BoxPlanes<T>& boxes, const CellRows& rows, const uint64_t* waiting,
                const Seeker<T>& seeker, uint32_t* found) {
  constexpr int64_t kLanes = kLanesOf<T>;
  static_assert(kLanes <= kNmmOverread);
  int64_t num_found = 0;
  for (int64_t r = 0; r < rows.num_rows; ++r) {
    const int64_t end = rows.begin[r * rows.stride + rows.num_cells];
    for (int64_t i = rows.begin[r * rows.stride]; i < end; i += kLanes) {
      uint64_t wanted = bits_from(waiting, i);
      if (end - i < 64) wanted &= (uint64_t(1) << (end - i)) - 1;
      if (!wanted) {
        i += 64 - kLanes;
        continue;
      }
      uint32_t bits = overlapping_lanes<metric>(boxes, i, seeker) & static_cast<uint32_t>(wanted);
      for (; bits; bits &= bits - 1)
        found[num_found++] = static_cast<uint32_t>(i + __builtin_ctz(bits));
    }
  }
  return num_found;
}

template <typename T>
int64_t find(OverlapMetric metric, const BoxPlanes<T>& boxes, const CellRows& rows,
             const uint64_t* waiting, const Seeker<T>& seeker, uint32_t* found) {
  return metric == OverlapMetric::kIos
             ? find_by<OverlapMetric::kIos>(boxes, rows, waiting, seeker, found)
             : find_by<OverlapMetric::kIou>(boxes, rows, waiting, seeker, found);
}

template <typename T>
constexpr NmmLoops<T> kLoops = {
    .find = find<T>,
};

}  // namespace

FASTDET_LOOPS(NmmLoops<float>) { return kLoops<float>; }
FASTDET_LOOPS(NmmLoops<double>) { return kLoops<double>; }

}  // namespace fastdet::cpu::FASTDET_ISA
