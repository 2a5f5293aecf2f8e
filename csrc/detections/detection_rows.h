// SPDX-License-Identifier: BSD-3-Clause
// The output arrays of every detection operator, as raw pointers: plain C++, no torch.
#pragma once

#include "../geometry/box.h"

namespace fastdet {

// Each is (B, D, ...), and zero beyond the counts (B,).
template <typename S>
struct DetectionRows {
  Box<S>* boxes;
  S* scores;
  int64_t *labels, *counts;
};

}  // namespace fastdet
