// SPDX-License-Identifier: BSD-3-Clause
// A batch of padded assignment problems on the CPU. Plain C++ over pointers, without torch.
#pragma once

#include <cstdint>

#include "assignment_scratch.h"

namespace fastdet::cpu {

// Problems of (rows, columns); a null count means all.
template <typename T>
struct AssignmentBatch {
  const T* cost;
  const int64_t *row_counts, *col_counts;
  int64_t num_problems, num_rows, num_columns;
};

inline int64_t count_within(const int64_t* counts, int64_t problem, int64_t size) {
  return counts ? std::clamp(counts[problem], int64_t(0), size) : size;
}

// Writes the column of each row, or -1. `parallel(n, grain, body)` runs body(begin, end) for pieces
// of [0, n).
template <typename T, typename Parallel>
void assign_batch(const AssignmentBatch<T>& in, int64_t* index, const Parallel& parallel) {
  constexpr int64_t kCostsOfAPiece = 4096;
  const int64_t size = in.num_rows * in.num_columns;
  if (size == 0) {
    std::fill_n(index, in.num_problems * in.num_rows, int64_t(-1));
    return;
  }
  const int64_t grain = std::max(int64_t(1), kCostsOfAPiece / size);
  parallel(in.num_problems, grain, [&](int64_t begin, int64_t end) {
    AssignmentScratch scratch;
    for (int64_t p = begin; p < end; ++p) {
      const int64_t rows = count_within(in.row_counts, p, in.num_rows);
      const int64_t columns = count_within(in.col_counts, p, in.num_columns);
      int64_t* const own = index + p * in.num_rows;
      std::fill_n(own, in.num_rows, int64_t(-1));
      if (rows == 0 || columns == 0) continue;
      scratch.load(in.cost + p * size, rows, columns, in.num_columns);
      scratch.solve(own);
    }
  });
}

}  // namespace fastdet::cpu
