// SPDX-License-Identifier: BSD-3-Clause
// The rule of non-maximum merging, for host and device: no torch.
#pragma once

#include "../geometry/overlap.h"

namespace fastdet {

template <typename T>
struct NmmRule {
  OverlapMetric metric;
  T above;          // boxes match if their overlap is above this (just_below of the threshold)
  bool transitive;  // a merged box passes the boxes that it overlaps on to its group
};

}  // namespace fastdet
