// SPDX-License-Identifier: BSD-3-Clause
// The loop that finds the logits above a bound.
#pragma once

#include <cstdint>

#include "../geometry/numbers.h"
#include "../isa/loops.h"

namespace fastdet::cpu {

// T is float, double, Half or BFloat16.
template <typename T>
struct FASTDET_EXPORT TopLogitsLoops {
  // Writes the values of the logits above the bound, in order, and their indices, which count from
  // `first`. Returns how many. Both outputs have room for n.
  int64_t (*find_above)(const T* logits, int64_t n, Sum<T> bound, int64_t first, Sum<T>* values,
                        int64_t* index);
};

}  // namespace fastdet::cpu
