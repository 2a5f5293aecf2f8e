// SPDX-License-Identifier: BSD-3-Clause
// A batch of assignment problems on the device, one block for each; assignment.h has the method.
// The threads share the columns in each scan of a row and then reduce by shuffles and, with more
// than one warp, through shared memory. What a search needs of each column (48 bytes) is in shared
// memory up to kSharedColumns columns, beyond that in global memory.
//
// Latency decides, not bandwidth: a step of the method is a scan, a reduction and a few barriers,
// and each step needs the result of the last one. Random costs take 30 steps for 300 x 30, 3,600
// for 300 x 300 and 50,000 for 2000 x 2000 (counted). A batch takes as long as its slowest problem,
// as long as there is a multiprocessor for each. 1 launch, no host sync.
#include "../device/warp.cuh"
#include "assignment.h"
#include "block_assignment.cuh"

namespace fastdet::cuda {

namespace {

constexpr int64_t kSharedColumns = 896;
constexpr int64_t kDoublesOfAColumn = 6;  // of AssignmentState

// ---- reductions over a block --------------------------------------------------------------------

// Threads without a column start with these.
constexpr int64_t kNoColumn = std::numeric_limits<int32_t>::max();

__device__ TwoSmallest merge(const TwoSmallest& a, const TwoSmallest& b) {
  const bool swapped = b.smallest < a.smallest || (b.smallest == a.smallest && b.column < a.column);
  const TwoSmallest first = swapped ? b : a, other = swapped ? a : b;
  // In this order a NaN is passed over, as in the scans of the host.
  return {first.smallest, min_of(other.smallest, first.second), first.column};
}
__device__ Nearest merge(const Nearest& a, const Nearest& b) {
  const bool swapped = b.distance < a.distance || (b.distance == a.distance && b.column < a.column);
  return swapped ? b : a;
}
__device__ int64_t merge(int64_t a, int64_t b) { return min_of(a, b); }

__device__ int64_t from_lane(int64_t x, int d) { return __shfl_xor_sync(kAllLanes, x, d); }
__device__ double from_lane(double x, int d) { return __shfl_xor_sync(kAllLanes, x, d); }
// Column numbers are below 2^32.
__device__ int64_t column_from_lane(int64_t column, int d) {
  return __shfl_xor_sync(kAllLanes, static_cast<unsigned>(column), d);
}
__device__ TwoSmallest from_lane(const TwoSmallest& x, int d) {
  const double smallest = from_lane(x.smallest, d), second = from_lane(x.second, d);
  return {smallest, second, column_from_lane(x.column, d)};
}
__device__ Nearest from_lane(const Nearest& x, int d) {
  const double distance = from_lane(x.distance, d);
  return {distance, column_from_lane(x.column, d)};
}

// The merged value of all threads, in each of them. The block consists of whole warps.
template <typename Value>
__device__ Value merge_block(Value own) {
  __shared__ Value of_warps[kWarp];
  for (int d = kWarp / 2; d > 0; d /= 2) own = merge(own, from_lane(own, d));
  const int num_warps = blockDim.x / kWarp;
  if (num_warps == 1) return own;
  __syncthreads();  // the last call's values have been read
  if (lane() == 0) of_warps[warp()] = own;
  __syncthreads();
  own = of_warps[0];
  for (int w = 1; w < num_warps; ++w) own = merge(own, of_warps[w]);
  return own;
}

// ---- the team -----------------------------------------------------------------------------------

class BlockTeam {
 public:
  __device__ explicit BlockTeam(int64_t num_columns) : n_(static_cast<int>(num_columns)) {}

  __device__ TwoSmallest two_smallest(const double* cost, const double* price) const {
    TwoSmallest own = {kForbidden, kForbidden, kNoColumn};
    for (int j = threadIdx.x; j < n_; j += blockDim.x)
      own = merge(own, TwoSmallest{cost[j] - price[j], kForbidden, j});
    return merge_block(own);
  }

  // Columns with an owner are numbered from n on, so that they come after those without.
  __device__ Nearest relax(const double* cost, const double* price, double offset, int64_t row,
                           const int* owner, double* distance, int* path) const {
    Nearest own = {kForbidden, kNoColumn};
    for (int j = threadIdx.x; j < n_; j += blockDim.x) {
      const double through = cost[j] - price[j] - offset;
      if (through < distance[j]) {
        distance[j] = through;
        path[j] = static_cast<int>(row);
      }
      own = merge(own, Nearest{distance[j], owner[j] < 0 ? j : int64_t(j) + n_});
    }
    own = merge_block(own);
    return {own.distance, own.column < n_ ? own.column : own.column - n_};
  }

  __device__ int64_t first_free(const double* values, double value, const int* owner) const {
    int64_t own = kNoColumn;
    for (int j = threadIdx.x; j < n_ && own == kNoColumn; j += blockDim.x)
      if (values[j] == value && owner[j] < 0) own = j;
    own = merge_block(own);
    return own == kNoColumn ? -1 : own;
  }

  template <typename F>
  __device__ void once(const F& f) const {
    __syncthreads();
    if (threadIdx.x == 0) f();
    __syncthreads();
  }

  template <typename F>
  __device__ void for_each(int64_t n, const F& f) const {
    __syncthreads();
    for (int64_t k = threadIdx.x; k < n; k += blockDim.x) f(k);
    __syncthreads();
  }

 private:
  int n_;
};

// ---- the kernel ---------------------------------------------------------------------------------

// Costs that are not finite become the largest finite one, or 0 without any.
__device__ void make_finite(double* cost, int64_t n) {
  Nearest own = {kForbidden, kNoColumn};  // of the negated costs
  bool all_finite = true;
  for (int64_t k = threadIdx.x; k < n; k += blockDim.x) {
    if (is_finite(cost[k]))
      own.distance = min_of(own.distance, -cost[k]);
    else
      all_finite = false;
  }
  if (!__syncthreads_or(!all_finite)) return;
  const double least = merge_block(own).distance;
  const double largest = least < kForbidden ? -least : 0.;
  for (int64_t k = threadIdx.x; k < n; k += blockDim.x)
    if (!is_finite(cost[k])) cost[k] = largest;
  __syncthreads();
}

__device__ AssignmentState<int> state_in(double* memory, int64_t n) {
  int* const ints = reinterpret_cast<int*>(memory + 4 * n);
  return {memory,       memory + n,   ints,           ints + n,
          ints + 2 * n, ints + 3 * n, memory + 2 * n, memory + 3 * n};
}

__global__ void __launch_bounds__(kThreads)
    assignment_kernel(BlockAssignment in, double* in_global) {
  __shared__ double shared[kDoublesOfAColumn * kSharedColumns];
  const int64_t problem = blockIdx.x;
  int64_t* const index = in.index + problem * in.num_rows;
  for (int64_t r = threadIdx.x; r < in.num_rows; r += blockDim.x) index[r] = -1;
  const int64_t rows = in.row_counts.of(problem, in.num_rows);
  const int64_t columns = in.col_counts.of(problem, in.num_columns);
  if (rows == 0 || columns == 0) return;
  double* const cost = in.cost + problem * in.num_rows * in.num_columns;
  if (in.make_finite) make_finite(cost, rows * columns);
  const int64_t smaller = min_of(rows, columns), larger = max_of(rows, columns);
  const int64_t most = max_of(in.num_rows, in.num_columns);
  double* const memory =
      larger <= kSharedColumns ? shared : in_global + problem * kDoublesOfAColumn * most;
  const AssignmentState<int> state = state_in(memory, larger);
  const BlockTeam team(larger);
  const AssignmentSolver<BlockTeam, int> solver = {team, cost, larger, smaller, larger, state};
  solver.solve();
  team.for_each(smaller, [&](int64_t i) {
    const int j = state.column[i];
    if (j < 0) return;
    if (rows > columns)
      index[j] = i;
    else
      index[i] = j;
  });
}

}  // namespace

void solve_assignments(const BlockAssignment& in, int64_t num_problems, const Tensor& like,
                       cudaStream_t stream) {
  const int64_t larger = std::max(in.num_rows, in.num_columns);
  const bool is_large = larger > kSharedColumns;
  const Tensor memory =
      empty(like, {is_large ? num_problems : 0, kDoublesOfAColumn, larger}, kFloat64);
  // Few threads: barriers take more time than the columns of a thread.
  const unsigned threads = larger <= 128 ? 32 : larger <= 512 ? 64 : kThreads;
  launch(assignment_kernel, dim3(static_cast<unsigned>(num_problems)), dim3(threads), 0, stream, in,
         mutable_data<double>(memory));
}

}  // namespace fastdet::cuda
