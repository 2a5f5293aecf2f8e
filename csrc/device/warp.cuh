// SPDX-License-Identifier: BSD-3-Clause
// A warp: 32 threads, called lanes, that run together.
#pragma once

#include "launch.cuh"

namespace fastdet::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = ~0u;

// For blocks of one dimension.
__device__ inline int lane() { return threadIdx.x % kWarp; }
__device__ inline int warp() { return threadIdx.x / kWarp; }

__device__ inline unsigned lanes_below() { return (1u << lane()) - 1; }

}  // namespace fastdet::cuda
