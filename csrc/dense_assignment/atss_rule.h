// SPDX-License-Identifier: BSD-3-Clause
// What adaptive training sample selection (ATSS) computes of an anchor and a ground-truth box (gt),
// shared by host and device: plain C++, no torch. Every step rounds in one fixed order, so the
// indices are the same everywhere.
#pragma once

#include <cmath>

#include "assignable.h"

namespace fastdet {

template <typename S>
struct Point {
  S x, y;
};

template <typename S>
FASTDET_HOST_DEVICE Point<S> centre_of(const Box<S>& box) {
  return {(box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2};
}

template <typename S>
FASTDET_HOST_DEVICE S squared_distance(const Point<S>& a, const Point<S>& b) {
  const S x = a.x - b.x, y = a.y - b.y;
  return x * x + y * y;
}

// Whether the centre of an anchor is inside a gt, by more than 0.01 pixels as in mmdetection.
template <typename S>
FASTDET_HOST_DEVICE bool is_well_inside(const Point<S>& centre, const Box<S>& gt) {
  const S margin = S(0.01);
  return centre.x - gt.x1 > margin && centre.y - gt.y1 > margin && gt.x2 - centre.x > margin &&
         gt.y2 - centre.y > margin;
}

// The mean of n IoUs plus their standard deviation (with n - 1; 0 for a single one), summed in
// double in their order.
template <typename S>
FASTDET_HOST_DEVICE double atss_threshold(const S* iou, int64_t n) {
  double sum = 0, squares = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(iou[i]);
  const double mean = sum / static_cast<double>(n);
  for (int64_t i = 0; i < n; ++i) {
    const double difference = static_cast<double>(iou[i]) - mean;
    squares += difference * difference;
  }
  return n > 1 ? mean + ::sqrt(squares / static_cast<double>(n - 1)) : mean;
}

// Whether a candidate of that IoU is positive.
template <typename S>
FASTDET_HOST_DEVICE bool is_atss_positive(S iou, double threshold, const Box<S>& anchor,
                                          const Box<S>& gt) {
  return iou > S(0) && static_cast<double>(iou) >= threshold &&
         is_well_inside(centre_of(anchor), gt);
}

}  // namespace fastdet
