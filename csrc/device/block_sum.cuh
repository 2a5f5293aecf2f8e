// SPDX-License-Identifier: BSD-3-Clause
// Sums over the threads of a block, in the order of the threads.
#pragma once

#include "warp.cuh"

namespace fastdet::cuda {

// The sum over the lanes up to and including this one. All lanes of a warp call it.
template <typename T>
__device__ T warp_sum_up_to(T value) {
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const T below = __shfl_up_sync(kAllLanes, value, distance);
    if (lane() >= distance) value += below;
  }
  return value;
}

template <typename T>
struct BlockSum {
  T before, total;  // over the threads before this one, and over all
};

// All threads of a block call it.
template <int threads = kThreads, typename T>
__device__ BlockSum<T> block_sum(T value) {
  constexpr int kWarps = threads / kWarp;
  __shared__ T warp_sums[kWarps];
  const T up_to = warp_sum_up_to(value);
  if (lane() == kWarp - 1) warp_sums[warp()] = up_to;
  __syncthreads();
  BlockSum<T> sum = {up_to - value, 0};
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp()) sum.before += warp_sums[w];
    sum.total += warp_sums[w];
  }
  __syncthreads();  // the next sum overwrites this one
  return sum;
}

}  // namespace fastdet::cuda
