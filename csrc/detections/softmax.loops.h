// SPDX-License-Identifier: BSD-3-Clause
// The softmax of one row of logits.
#pragma once

#include <cstdint>

#include "../geometry/numbers.h"
#include "../isa/loops.h"

namespace fastdet::cpu {

// T is float, double, Half or BFloat16.
template <typename T>
struct FASTDET_EXPORT SoftmaxLoops {
  // out = softmax(logits), of n values.
  void (*softmax)(const T* logits, int64_t n, Sum<T>* out);
};

}  // namespace fastdet::cpu
