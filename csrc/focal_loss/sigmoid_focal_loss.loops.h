// SPDX-License-Identifier: BSD-3-Clause
// The loops of the focal loss, over a run of logits.
#pragma once

#include <cstdint>

#include "../geometry/numbers.h"
#include "../isa/loops.h"
#include "focal_loss.h"

namespace fastdet::cpu {

// T is float, double, Half or BFloat16.
template <typename T>
struct FASTDET_EXPORT FocalLossLoops {
  // The focal loss of n logits, and grad times its derivative. If targets is null, all targets are
  // 0.
  void (*sigmoid_focal_loss)(const T* inputs, const Sum<T>* targets, int64_t n,
                             const FocalWeights<Sum<T>>& weights, Sum<T>* out);
  void (*sigmoid_focal_loss_backward)(const T* inputs, const Sum<T>* targets, int64_t n,
                                      const FocalWeights<Sum<T>>& weights, const Sum<T>* grad,
                                      T* out);
};

}  // namespace fastdet::cpu
