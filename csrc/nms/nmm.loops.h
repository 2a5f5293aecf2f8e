// SPDX-License-Identifier: BSD-3-Clause
// The loop of non-maximum merging: which boxes of some rows of cells does a box overlap?
#pragma once

#include <cstdint>

#include "../geometry/box_planes.h"
#include "../geometry/overlap.h"
#include "../isa/loops.h"

namespace fastdet::cpu {

constexpr int kNmmOverread = 16;  // values

// A box whose overlapping boxes are searched. Boxes overlap if their metric is above the threshold;
// then their intersection exceeds filter * what the metric divides it by.
template <typename T>
struct Seeker {
  Box<T> box;
  T area, threshold, filter;
};

// Some columns of some rows of cells: row r has the places [begin[r * stride], begin[r * stride +
// num_cells]).
struct CellRows {
  const uint32_t* begin;
  int64_t stride, num_rows, num_cells;
};

// T is float or double.
template <typename T>
struct FASTDET_EXPORT NmmLoops {
  // Writes the places of the rows whose box overlaps the seeker and whose bit in `waiting` is set
  // to `found`; returns how many. It may read up to kNmmOverread boxes and 64 bits beyond a row,
  // and ignores them.
  int64_t (*find)(OverlapMetric metric, const BoxPlanes<T>& boxes, const CellRows& rows,
                  const uint64_t* waiting, const Seeker<T>& seeker, uint32_t* found);
};

}  // namespace fastdet::cpu
