// SPDX-License-Identifier: BSD-3-Clause
// The scans of a row, with one running result in each lane. A lane sees its columns in ascending
// order and keeps the first of equal ones, so the lowest lane result is the lowest column. A
// column takes 3 to 8 vector operations.
#include "assignment.loops.h"

#include "../isa/lanes.h"

namespace fastdet::cpu::FASTDET_ISA {

namespace {

using Floats = Lanes<double>;
using Ints = Lanes<int64_t>;
constexpr int64_t kLanes = kLanesOf<double>;
static_assert(kAssignmentLanes % kLanes == 0);

__attribute__((always_inline)) inline Ints first_columns() {
  int64_t columns[kLanes];
  for (int64_t lane = 0; lane < kLanes; ++lane) columns[lane] = lane;
  return load_lanes(columns);
}

// The smallest lane, and the lowest of its columns.
__attribute__((always_inline)) inline Nearest nearest_lane(const Floats& values,
                                                           const Ints& columns) {
  Nearest nearest = {values[0], columns[0]};
  for (int64_t lane = 1; lane < kLanes; ++lane)
    if (values[lane] < nearest.distance ||
        (values[lane] == nearest.distance && columns[lane] < nearest.column))
      nearest = {values[lane], columns[lane]};
  return nearest;
}

TwoSmallest two_smallest(const double* cost, const double* price, int64_t n) {
  Floats smallest = all_lanes(kForbidden), second = smallest;
  Ints columns = {}, column = first_columns();
  for (int64_t j = 0; j < n; j += kLanes) {
    const Floats value = load_lanes(cost + j) - load_lanes(price + j);
    const Floats larger = value < smallest ? smallest : value;
    second = larger < second ? larger : second;
    columns = value < smallest ? column : columns;
    smallest = value < smallest ? value : smallest;
    column += kLanes;
  }
  const Nearest nearest = nearest_lane(smallest, columns);
  TwoSmallest two = {nearest.distance, kForbidden, nearest.column};
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    const double other = columns[lane] == two.column ? second[lane] : smallest[lane];
    two.second = min_of(two.second, other);
  }
  return two;
}

Nearest relax(const double* cost, const double* price, double offset, int64_t row, int64_t n,
              double* distance, int64_t* path) {
  const Floats offsets = all_lanes(offset);
  const Ints rows = all_lanes(row);
  Floats nearest = all_lanes(kForbidden);
  Ints columns = {}, column = first_columns();
  for (int64_t j = 0; j < n; j += kLanes) {
    const Floats through = load_lanes(cost + j) - load_lanes(price + j) - offsets;
    Floats best = load_lanes(distance + j);
    const auto shorter = through < best;
    best = shorter ? through : best;
    store_lanes<double>(best, distance + j);
    store_lanes<int64_t>(shorter ? rows : load_lanes(path + j), path + j);
    columns = best < nearest ? column : columns;
    nearest = best < nearest ? best : nearest;
    column += kLanes;
  }
  return nearest_lane(nearest, columns);
}

int64_t first_free(const double* values, double value, const int64_t* owner, int64_t n) {
  const Floats wanted = all_lanes(value);
  for (int64_t j = 0; j < n; j += kLanes) {
    if (!any_lane((load_lanes(values + j) == wanted) & (load_lanes(owner + j) < Ints{}))) continue;
    for (int64_t k = j;; ++k)
      if (values[k] == value && owner[k] < 0) return k;
  }
  return -1;
}

constexpr AssignmentLoops kLoops = {
    .two_smallest = two_smallest,
    .relax = relax,
    .first_free = first_free,
};

}  // namespace

FASTDET_LOOPS(AssignmentLoops) { return kLoops; }

}  // namespace fastdet::cpu::FASTDET_ISA
