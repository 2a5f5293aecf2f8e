// SPDX-License-Identifier: BSD-3-Clause
// A batch of assignment problems on the device, whose costs another kernel writes.
#pragma once

#include "../device/launch.cuh"
#include "../geometry/box.h"

namespace fastdet::cuda {

// The number of rows or columns of a problem: data[problem / repeat % size], or all if data is
// null.
struct ProblemCounts {
  const int64_t* data;
  int64_t repeat, size;

  __device__ int64_t of(int64_t problem, int64_t most) const {
    if (!data) return most;
    return max_of(int64_t(0), min_of(data[problem / repeat % size], most));
  }
};

// The costs of a problem are dense, and transposed if it has more rows than columns: a matrix of
// its smaller side by its larger side.
struct BlockAssignment {
  double* cost;  // (P, R C)
  ProblemCounts row_counts, col_counts;
  int64_t num_rows, num_columns;
  bool make_finite;  // costs that are not finite become the largest finite one
  int64_t* index;    // (P, R)

  __device__ int64_t position(int64_t problem, int64_t row, int64_t column) const {
    const int64_t rows = row_counts.of(problem, num_rows);
    const int64_t columns = col_counts.of(problem, num_columns);
    return problem * num_rows * num_columns +
           (rows > columns ? column * rows + row : row * columns + column);
  }
};

// Solves the problems whose costs are in `in.cost`. `like` is any tensor on the device.
void solve_assignments(const BlockAssignment& in, int64_t num_problems, const Tensor& like,
                       cudaStream_t stream);

}  // namespace fastdet::cuda
