// SPDX-License-Identifier: BSD-3-Clause
// Which of several blocks ends last, and so may use the results of the others in the same launch.
#pragma once

#include "launch.cuh"

namespace fastdet::cuda {

// Whether the block is the last of `num` blocks to arrive. The last one sees what the others wrote
// before. All threads of a block call it.
__device__ inline bool last_to_arrive(unsigned* arrived, int64_t num) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(arrived, 1u) == num - 1;
  __syncthreads();
  __threadfence();
  return last;
}

}  // namespace fastdet::cuda
