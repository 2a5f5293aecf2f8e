// SPDX-License-Identifier: BSD-3-Clause
// The search for points in boxes. Points are in blocks of neighbours; a box reads only the blocks
// whose hull it touches.
#pragma once

#include <cstdint>

#include "../geometry/box.h"
#include "../isa/loops.h"

namespace fastdet::cpu {

constexpr int64_t kPointBlock = 64;
// Arrays that a loop reads are padded to a multiple of this.
constexpr int64_t kPointLanes = 16;

constexpr int64_t padded_to_lanes(int64_t n) {
  return (n + kPointLanes - 1) / kPointLanes * kPointLanes;
}

// One array for each number; the padding contains no point, and no point lies in it.
template <typename S>
struct BoxArrays {
  const S *x1, *y1, *x2, *y2;
};

template <typename S>
struct PointPlanes {
  const S *x, *y;      // num_blocks * kPointBlock values; the padding, and points that are not
                       // finite, are NaN
  BoxArrays<S> hulls;  // of the blocks
  int64_t num_blocks;
};

// S is float or double.
template <typename S>
struct FASTDET_EXPORT PointLoops {
  // Fills x, y and the hulls from n points.
  void (*load_points)(const S* points, int64_t n, S* x, S* y, Box<S>* hulls);

  // Writes the points strictly inside the box, in order. Returns how many.
  int64_t (*points_in_box)(const PointPlanes<S>& points, const Box<S>& box, int32_t* rows);

  // Writes the k points nearest to (x, y), nearest first (of equal ones the lowest), and the
  // squares of their distances. Points whose square overflows are left out. Returns how many it
  // found. `bounds` has room for the blocks, padded.
  int64_t (*nearest_points)(const PointPlanes<S>& points, S x, S y, int64_t k, S* bounds,
                            S* distances, int32_t* rows);

  // Writes those of n boxes that have (x, y) strictly inside, in order. Returns how many.
  int64_t (*boxes_around)(const BoxArrays<S>& boxes, int64_t n, S x, S y, int32_t* rows);
};

}  // namespace fastdet::cpu
