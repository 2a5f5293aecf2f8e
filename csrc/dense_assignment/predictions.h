// SPDX-License-Identifier: BSD-3-Clause
// The predictions of an image as the dense assigners read them.
#pragma once

#include <cstdint>

#include "../geometry/box.h"
#include "../geometry/numbers.h"

namespace fastdet::cpu {

// Scores may have any strides. T is their type.
template <typename T>
struct Predictions {
  const T* scores;
  int64_t anchor_stride, class_stride;
  const Box<Sum<T>>* boxes;

  FASTDET_HOST_DEVICE Sum<T> score(int64_t anchor, int64_t label) const {
    return static_cast<Sum<T>>(scores[anchor * anchor_stride + label * class_stride]);
  }
};

}  // namespace fastdet::cpu
