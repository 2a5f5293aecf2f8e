// SPDX-License-Identifier: BSD-3-Clause
// linear_assignment on torch's threads; linear_assignment.h does the work.
#include "linear_assignment.h"

#include "../host/parallel.h"
#include "contract.h"

namespace fastdet::cpu {

Tensor linear_assignment(const Tensor& cost, const std::optional<Tensor>& row_counts,
                         const std::optional<Tensor>& col_counts) {
  check_linear_assignment(cost, row_counts, col_counts);
  const Tensor cost_in = torch::stable::contiguous(cost);
  const std::optional<Tensor> rows_in = contiguous(row_counts), columns_in = contiguous(col_counts);
  const Tensor index = empty_rows(cost, kInt64);
  const int64_t num_rows = cost.size(cost.dim() - 2), num_columns = cost.size(cost.dim() - 1);
  const int64_t num_problems = num_rows > 0 ? index.numel() / num_rows : 0;
  dispatch_floating(cost.scalar_type(), [&]<typename T>() {
    const AssignmentBatch<T> in = {data<T>(cost_in),
                                   rows_in ? data<int64_t>(*rows_in) : nullptr,
                                   columns_in ? data<int64_t>(*columns_in) : nullptr,
                                   num_problems,
                                   num_rows,
                                   num_columns};
    assign_batch(in, mutable_data<int64_t>(index), kTorchPool);
  });
  return index;
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) {
  m.impl("linear_assignment", TORCH_BOX(&linear_assignment));
}

}  // namespace fastdet::cpu
