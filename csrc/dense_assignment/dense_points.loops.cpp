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
inline __attribute__((always_inline)) Lanes<S> larger(const Lanes<S>& a, const Lanes<S>& b) {
  return a > b ? a : b;
}

// Writes to `bounds` a lower bound of the distance of each block. Rounding is monotonic, so no
// computed distance is below its bound. Returns the block with the lowest.
template <typename S>
int64_t bound_blocks(const PointPlanes<S>& in, S x, S y, S* bounds) {
  const Lanes<S> at_x = all_lanes(x), at_y = all_lanes(y), zero = {};
  for (int64_t b = 0; b < in.num_blocks; b += kLanesOf<S>) {
    const Lanes<S> dx = larger<S>(
        larger<S>(load_lanes(in.hulls.x1 + b) - at_x, at_x - load_lanes(in.hulls.x2 + b)), zero);
    const Lanes<S> dy = larger<S>(
        larger<S>(load_lanes(in.hulls.y1 + b) - at_y, at_y - load_lanes(in.hulls.y2 + b)), zero);
    store_lanes<S>(dx * dx + dy * dy, bounds + b);
  }
  int64_t lowest = 0;
  for (int64_t b = 1; b < in.num_blocks; ++b)
    if (bounds[b] < bounds[lowest]) lowest = b;
  return lowest;
}

// The k nearest points so far, sorted by distance, then by row.
template <typename S>
struct Nearest {
  S* distances;
  int32_t* rows;
  int64_t k, size = 0;
  S worst = std::numeric_limits<S>::max();  // a point beyond it is not among them

  __attribute__((always_inline)) void add(S distance, int32_t row) {
    if (size == k && !(distance < worst || row < rows[k - 1])) return;
    int64_t place = size < k ? size++ : k - 1;
    for (; place > 0 && (distances[place - 1] > distance ||
                         (distances[place - 1] == distance && rows[place - 1] > row));
         --place) {
      distances[place] = distances[place - 1];
      rows[place] = rows[place - 1];
    }
    distances[place] = distance;
    rows[place] = row;
    if (size == k) worst = distances[k - 1];
  }
};

template <typename S>
void add_block(const PointPlanes<S>& in, S x, S y, int64_t block, Nearest<S>& nearest) {
  const Lanes<S> at_x = all_lanes(x), at_y = all_lanes(y);
  for (int64_t i = block * kPointBlock; i < (block + 1) * kPointBlock; i += kLanesOf<S>) {
    const Lanes<S> dx = load_lanes(in.x + i) - at_x, dy = load_lanes(in.y + i) - at_y;
    const Lanes<S> distance = dx * dx + dy * dy;
    uint32_t near = lane_bits(distance <= all_lanes(nearest.worst));
    for (; near; near &= near - 1) {
      const int at = std::countr_zero(near);
      if (distance[at] <= nearest.worst) nearest.add(distance[at], static_cast<int32_t>(i + at));
    }
  }
}

template <typename S>
int64_t nearest_points(const PointPlanes<S>& points, S x, S y, int64_t k, S* bounds, S* distances,
                       int32_t* rows) {
  const PointPlanes<S> in = points;
  if (in.num_blocks == 0) return 0;
  const int64_t first = bound_blocks(in, x, y, bounds);
  Nearest<S> nearest = {distances, rows, k};
  add_block(in, x, y, first, nearest);
  for (int64_t b = 0; b < in.num_blocks; ++b)
    if (b != first && bounds[b] <= nearest.worst) add_block(in, x, y, b, nearest);
  return nearest.size;
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
    .nearest_points = nearest_points<S>,
    .boxes_around = boxes_around<S>,
};

}  // namespace

FASTDET_LOOPS(PointLoops<float>) { return kLoops<float>; }
FASTDET_LOOPS(PointLoops<double>) { return kLoops<double>; }

}  // namespace fastdet::cpu::FASTDET_ISA
