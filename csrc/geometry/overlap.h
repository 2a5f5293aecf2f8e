// SPDX-License-Identifier: BSD-3-Clause
// Whether a box can overlap another at all, and the size below which products of areas lose their
// relative precision. Host and device, no torch.
#pragma once

#include <limits>

#include "box.h"

namespace fastdet {

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
