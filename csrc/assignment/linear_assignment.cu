// SPDX-License-Identifier: BSD-3-Clause
// Assignment problems on the device. One launch copies the costs to float64, each problem with its
// smaller side first, and another one solves them (block_assignment.cu). No host sync; memory: the
// copy.
#include "assignment.h"
#include "block_assignment.cuh"
#include "contract.h"

namespace fastdet::cuda {

namespace {

template <typename T>
void copy_costs(const Tensor& cost, const BlockAssignment& to, cudaStream_t stream) {
  const T* const from = data<T>(cost);
  for_each(cost.numel(), stream, [=] __device__(int64_t i) {
    const int64_t row = i / to.num_columns, column = i % to.num_columns;
    const int64_t problem = row / to.num_rows, of_problem = row % to.num_rows;
    if (of_problem >= to.row_counts.of(problem, to.num_rows) ||
        column >= to.col_counts.of(problem, to.num_columns))
      return;
    const double value = static_cast<double>(from[i]);
    to.cost[to.position(problem, of_problem, column)] = is_finite(value) ? value : kForbidden;
  });
}

}  // namespace

Tensor linear_assignment(const Tensor& cost, const std::optional<Tensor>& row_counts,
                         const std::optional<Tensor>& col_counts) {
  check_linear_assignment(cost, row_counts, col_counts);
  const DeviceGuard guard(cost.get_device_index());
  const Tensor cost_in = torch::stable::contiguous(cost);
  const std::optional<Tensor> rows_in = contiguous(row_counts), columns_in = contiguous(col_counts);
  const Tensor index = empty_rows(cost, kInt64);
  if (index.numel() == 0) return index;
  const int64_t num_rows = cost.size(cost.dim() - 2), num_columns = cost.size(cost.dim() - 1);
  const int64_t num_problems = index.numel() / num_rows;
  const Tensor copy = empty_like(cost_in, kFloat64);
  const BlockAssignment batch = {
      mutable_data<double>(copy),
      {rows_in ? data<int64_t>(*rows_in) : nullptr, 1, num_problems},
      {columns_in ? data<int64_t>(*columns_in) : nullptr, 1, num_problems},
      num_rows,
      num_columns,
      false,
      mutable_data<int64_t>(index)};
  const cudaStream_t stream = current_stream(cost);
  dispatch_floating(cost.scalar_type(),
                    [&]<typename T>() { copy_costs<T>(cost_in, batch, stream); });
  solve_assignments(batch, num_problems, cost, stream);
  return index;
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CUDA, m) {
  m.impl("linear_assignment", TORCH_BOX(&linear_assignment));
}

}  // namespace fastdet::cuda
