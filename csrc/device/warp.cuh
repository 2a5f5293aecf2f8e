// SPDX-License-Identifier: BSD-3-Clause
// A warp: 32 threads, called lanes, that run together.
#pragma once

#include "../geometry/box.h"
#include "launch.cuh"

namespace fastdet::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = ~0u;

// For blocks of one dimension.
__device__ inline int lane() { return threadIdx.x % kWarp; }
__device__ inline int warp() { return threadIdx.x / kWarp; }

__device__ inline unsigned lanes_below() { return (1u << lane()) - 1; }

// The sum over the lanes of a group, a power of two. All lanes of a warp call it.
template <typename S>
__device__ S group_sum(S value, int lanes) {
  for (int distance = 1; distance < lanes; distance *= 2)
    value += __shfl_xor_sync(kAllLanes, value, distance);
  return value;
}

template <typename S>
__device__ S group_max(S value, int lanes) {
  for (int distance = 1; distance < lanes; distance *= 2)
    value = max_of(value, __shfl_xor_sync(kAllLanes, value, distance));
  return value;
}

}  // namespace fastdet::cuda
