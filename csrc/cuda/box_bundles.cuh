// SPDX-License-Identifier: BSD-3-Clause
// Bundles of 32 boxes that lie together, so that a warp looks for the partners of a box among 32
// bundles at a time and then only in those that can hold one. Each tile of ranks is bundled by
// itself: a bundle in tile t holds ranks of tile t.
//
// If IoU(a, b) > t, then the overlap is wider than t * width a, higher than t * height a, and
// neither area is below t times the other: a bundle of whose hull or areas that is false is passed
// by. At t = 0.5 that leaves the bundles whose hull holds the centre of `a`. A tile is sorted by
// area (a factor of 16 at a time) and then along a Z curve, so that hulls are small: of 4096 boxes
// of an image, a bundle spans about 1 / 11 of its sides and a box.
//
// Whether a pair is looked at never changes the result: kShrink covers the roundings of a pair
// whose areas lose no digits, and boxes too small for that look everywhere they touch.
#pragma once

#include <limits>

#include "score_order.cuh"

namespace fastdet::cuda {

constexpr int kTileBundles = kTile / kWarp;

// Where areas or sides below this are compared, their products may round in steps, not in
// proportion.
template <typename T>
constexpr T kTiny = std::numeric_limits<T>::min() * (T(1) / std::numeric_limits<T>::epsilon());

template <typename T>
constexpr T kShrink = T(1) - 16 * std::numeric_limits<T>::epsilon();

template <typename T>
struct Areas {
  T least, most;
};

template <typename T>
struct BoxBundles {
  Box<T>* boxes;    // (B, n), by place; the places of tile t are [t * kTile, (t + 1) * kTile)
  uint32_t* ranks;  // (B, n) by place
  int64_t* groups;  // (B, n) by place, or null
  Box<T>* hulls;    // (B, num_bundles)
  Areas<T>* areas;  // (B, num_bundles)
  int64_t num_bundles;

  // Those of one image; n: of each image.
  __device__ BoxBundles of(int64_t image, int64_t n) const {
    return {
        boxes + image * n,           ranks + image * n,           groups + (groups ? image * n : 0),
        hulls + image * num_bundles, areas + image * num_bundles, num_bundles};
  }
};

// Whether the box can have an IoU above 0 with any other.
template <typename T>
__device__ bool can_overlap(const Box<T>& box, T box_area) {
  return box.x1 < box.x2 && box.y1 < box.y2 && box_area > T(0) && is_finite(box_area);
}

// Puts 14 bits into every second place of 28.
__device__ inline uint32_t spread(uint32_t x) {
  x = (x | x << 8) & 0x00FF00FF;
  x = (x | x << 4) & 0x0F0F0F0F;
  x = (x | x << 2) & 0x33333333;
  return (x | x << 1) & 0x55555555;
}

// Boxes with like keys lie together. Of a centre, 14 bits: sign, exponent and 5 of the fraction.
template <typename T>
__device__ uint32_t place_key(const Box<T>& box) {
  const uint32_t x = rising_key(static_cast<float>((box.x1 + box.x2) / 2)) >> 18;
  const uint32_t y = rising_key(static_cast<float>((box.y1 + box.y2) / 2)) >> 18;
  const uint32_t size = rising_key(static_cast<float>(area(box))) >> 25;
  return size << 28 | spread(x) << 1 | spread(y);
}

template <typename T>
__device__ T least_of_warp(T x) {
  for (int d = kWarp / 2; d > 0; d /= 2) x = min_of(x, __shfl_xor_sync(kAllLanes, x, d));
  return x;
}

// By a whole warp, each lane with a box of the bundle; those that overlap nothing do not count.
template <typename T>
__device__ void store_bundle(const BoxBundles<T>& out, int64_t bundle, const Box<T>& box,
                             bool counts) {
  constexpr T kFar = std::numeric_limits<T>::infinity();
  const T own = area(box);
  const bool tiny = own < kTiny<T>;
  const Box<T> hull = {least_of_warp(counts ? box.x1 : kFar), least_of_warp(counts ? box.y1 : kFar),
                       -least_of_warp(counts ? -box.x2 : kFar),
                       -least_of_warp(counts ? -box.y2 : kFar)};
  const T least = least_of_warp(counts ? (tiny ? T(0) : own) : kFar);
  const T most = -least_of_warp(counts ? -own : kFar);
  if (lane() != 0) return;
  store_box(out.hulls + bundle, hull);
  out.areas[bundle] = {least, most};
}

// One box as it looks for partners; all lanes of a warp have the same.
template <typename T>
struct Seeker {
  Box<T> box;
  T area, filter;   // a partner's intersection exceeds filter * union
  T width, height;  // and is wider and higher than this
  uint32_t rank;
  int64_t group;

  __device__ Seeker(const Box<T>& b, uint32_t rank, int64_t group, T proportional_filter)
      : box(b), area(fastdet::area(b)), rank(rank), group(group) {
    const T w = b.x2 - b.x1, h = b.y2 - b.y1;
    filter = min_of(area, min_of(w, h)) < kTiny<T> ? T(0) : proportional_filter;
    width = filter * w;
    height = filter * h;
  }

  // Both without branches, so that all loads are under way at once.
  __device__ bool may_overlap(const Box<T>& hull, const Areas<T>& areas) const {
    return (hull.x2 - box.x1 > width) & (box.x2 - hull.x1 > width) & (hull.y2 - box.y1 > height) &
           (box.y2 - hull.y1 > height) & (areas.most > filter * area) &
           (area > filter * areas.least);
  }

  // False for most pairs that do not overlap, true for all that do: no division.
  __device__ bool may_overlap(const Box<T>& other) const {
    const T inter = intersection(box, other);
    return inter > filter * (area + fastdet::area(other) - inter);
  }

  __device__ bool overlaps(const Box<T>& other, T iou_threshold) const {
    return may_overlap(other) && iou(box, area, other, fastdet::area(other)) > iou_threshold;
  }
};

}  // namespace fastdet::cuda
