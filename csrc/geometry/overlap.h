// SPDX-License-Identifier: BSD-3-Clause
// How the overlap of two boxes is measured, whether a box can overlap another at all, and the size
// below which products of areas lose their relative precision. Host and device, no torch.
#pragma once

#include <limits>

#include "box.h"

namespace fastdet {

// The intersection of two boxes as a share of their union (IoU), or of the smaller box (IoS).
enum class OverlapMetric { kIou, kIos };

// What the metric divides the intersection by.
template <OverlapMetric metric, typename T>
FASTDET_HOST_DEVICE T overlap_denominator(T area_a, T area_b, T inter) {
  return metric == OverlapMetric::kIos ? min_of(area_a, area_b) : area_a + area_b - inter;
}

// Below this, areas and sides lose digits: the rounding error of their products is absolute, not
// relative.
template <typename T>
constexpr T kTiny = std::numeric_limits<T>::min() * (T(1) / std::numeric_limits<T>::epsilon());

// Whether the box can have an IoU above 0 with any other box.
template <typename T>
FASTDET_HOST_DEVICE bool can_overlap(const Box<T>& box, T box_area) {
  return box.x1 < box.x2 && box.y1 < box.y2 && box_area > T(0) && is_finite(box_area);
}

}  // namespace fastdet
