// SPDX-License-Identifier: BSD-3-Clause
// The search for points: 4 comparisons a vector of points, or of hulls.
#include "dense_points.loops.h"

#include <bit>
#include <limits>

#include "../isa/lanes.h"

namespace fastdet::cpu::FASTDET_ISA {

namespace {

// The places of the lanes that are set, from `first` on.
inline __attribute__((always_inline)) int32_t* write_lanes(uint32_t bits, int64_t first,
                                                           int32_t* rows) {
  for (; bits; bits &= bits - 1) *rows++ = static_cast<int32_t>(first + std::countr_zero(bits));
  return rows;
}

template <typename S>
void load_points(const S* points, int64_t n, S* x, S* y, Box<S>* hulls) {
  constexpr S kInf = std::numeric_limits<S>::infinity();
  constexpr S kNan = std::numeric_limits<S>::quiet_NaN();
  for (int64_t begin = 0; begin < n; begin += kPointBlock) {
    Box<S> hull = {kInf, kInf, -kInf, -kInf};
    for (int64_t i = begin; i < begin + kPointBlock; ++i) {
      const bool usable = i < n && is_finite(points[2 * i]) && is_finite(points[2 * i + 1]);
      x[i] = usable ? points[2 * i] : kNan;
      y[i] = usable ? points[2 * i + 1] : kNan;
      if (usable) hull = enclosing(hull, {x[i], y[i], x[i], y[i]});
    }
    hulls[begin / kPointBlock] = hull;
  }
}

template <typename S>
int64_t points_in_box(const PointPlanes<S>& points, const Box<S>& box, int32_t* rows) {
  const PointPlanes<S> in = points;
  const Lanes<S> x1 = all_lanes(box.x1), y1 = all_lanes(box.y1);
  const Lanes<S> x2 = all_lanes(box.x2), y2 = all_lanes(box.y2);
  int32_t* next = rows;
  for (int64_t b = 0; b < in.num_blocks; b += kLanesOf<S>) {
    uint32_t touched =
        lane_bits((load_lanes(in.hulls.x1 + b) < x2) & (load_lanes(in.hulls.x2 + b) > x1) &
                  (load_lanes(in.hulls.y1 + b) < y2) & (load_lanes(in.hulls.y2 + b) > y1));
    for (; touched; touched &= touched - 1) {
      const int64_t begin = (b + std::countr_zero(touched)) * kPointBlock;
      for (int64_t i = begin; i < begin + kPointBlock; i += kLanesOf<S>) {
        const Lanes<S> x = load_lanes(in.x + i), y = load_lanes(in.y + i);
        next = write_lanes(lane_bits((x > x1) & (x < x2) & (y > y1) & (y < y2)), i, next);
      }
    }
  }
  return next - rows;
}

template <typename S>
int64_t boxes_around(const BoxArrays<S>& boxes, int64_t n, S x, S y, int32_t* rows) {
  const BoxArrays<S> in = boxes;
  const Lanes<S> at_x = all_lanes(x), at_y = all_lanes(y);
  int32_t* next = rows;
  for (int64_t i = 0; i < n; i += kLanesOf<S>)
    next = write_lanes(lane_bits((load_lanes(in.x1 + i) < at_x) & (load_lanes(in.x2 + i) > at_x) &
                                 (load_lanes(in.y1 + i) < at_y) & (load_lanes(in.y2 + i) > at_y)),
                       i, next);
  return next - rows;
}

template <typename S>
constexpr PointLoops<S> kLoops = {
    .load_points = load_points<S>,
    .points_in_box = points_in_box<S>,
    .boxes_around = boxes_around<S>,
};

}  // namespace

FASTDET_LOOPS(PointLoops<float>) { return kLoops<float>; }
FASTDET_LOOPS(PointLoops<double>) { return kLoops<double>; }

}  // namespace fastdet::cpu::FASTDET_ISA
