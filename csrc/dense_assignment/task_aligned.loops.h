// SPDX-License-Identifier: BSD-3-Clause
// The alignment of predictions with one ground-truth box (gt).
#pragma once

#include <cstdint>

#include "../isa/loops.h"
#include "predictions.h"
#include "task_aligned_rule.h"

namespace fastdet::cpu {

// T is float, double, Half or BFloat16.
template <typename T>
struct FASTDET_EXPORT TaskAlignedLoops {
  using S = Sum<T>;

  // The alignment and the overlap of n anchors with a gt.
  void (*align)(const Predictions<T>& in, const int32_t* anchors, int64_t n, const Box<S>& gt,
                int64_t label, const TaskAlignment<S>& rule, S* alignment, S* overlap);
};

}  // namespace fastdet::cpu
