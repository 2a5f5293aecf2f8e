// SPDX-License-Identifier: BSD-3-Clause
// The alignment of predictions with one ground-truth box (gt).
#pragma once

#include <cstdint>

#include "../geometry/numbers.h"
#include "../isa/loops.h"
#include "task_aligned_rule.h"

namespace fastdet::cpu {

// The predictions of an image, scores with any strides. T is the type of the scores.
template <typename T>
struct Predictions {
  const T* scores;
  int64_t anchor_stride, class_stride;
  const Box<Sum<T>>* boxes;

  Sum<T> score(int64_t anchor, int64_t label) const {
    return static_cast<Sum<T>>(scores[anchor * anchor_stride + label * class_stride]);
  }
};

// T is float, double, Half or BFloat16.
template <typename T>
struct FASTDET_EXPORT TaskAlignedLoops {
  using S = Sum<T>;

  // The alignment and the overlap of n anchors with a gt.
  void (*align)(const Predictions<T>& in, const int32_t* anchors, int64_t n, const Box<S>& gt,
                int64_t label, const TaskAlignment<S>& rule, S* alignment, S* overlap);
};

}  // namespace fastdet::cpu
