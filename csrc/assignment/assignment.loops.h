// SPDX-License-Identifier: BSD-3-Clause
// The scans of a row of an assignment problem.
#pragma once

#include <cstdint>

#include "../isa/loops.h"
#include "assignment.h"

namespace fastdet::cpu {

// The number of columns is a multiple of the lanes of the widest vector.
constexpr int64_t kAssignmentLanes = 8;

struct FASTDET_EXPORT AssignmentLoops {
  // Of cost - price.
  TwoSmallest (*two_smallest)(const double* cost, const double* price, int64_t n);

  // Lowers each distance to cost - price - offset if that is less, and sets its path to the row
  // then. Returns the nearest column, whether it has an owner or not; column 0 if all distances
  // are kForbidden.
  Nearest (*relax)(const double* cost, const double* price, double offset, int64_t row, int64_t n,
                   double* distance, int64_t* path);

  // The lowest column without an owner that has this value, or -1.
  int64_t (*first_free)(const double* values, double value, const int64_t* owner, int64_t n);
};

}  // namespace fastdet::cpu
