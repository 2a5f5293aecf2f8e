// SPDX-License-Identifier: BSD-3-Clause
// Small kernels that show what the emulator runs and what it catches.
#include <exception>
#include <string>

#include "include/cuda_runtime.h"

namespace {

constexpr int kLanes = 96;

enum Barrier { kNone, kOfWarp, kOfBlock };

// Each lane writes its place and reads its mirror image's, which is in another warp for most;
// without a barrier of the block it may read too soon.
__global__ void mirror_kernel(int* out, int barrier) {
  __shared__ int values[kLanes];
  values[threadIdx.x] = -1;
  __syncthreads();
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (barrier == kOfWarp) __ballot_sync(~0u, true);
  if (barrier == kOfBlock) __syncthreads();
  out[threadIdx.x] = values[kLanes - 1 - threadIdx.x];
}

// The lanes of a block take two ways to two barriers.
__global__ void part_kernel(int* out) {
  if (threadIdx.x % 2) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
}

// 0: who is odd; 1: the next lane's place; 2: the sum over the warp; of 40 lanes, so that the
// second warp is not full.
__global__ void warp_kernel(unsigned* out) {
  const unsigned lane = threadIdx.x % 32, mask = threadIdx.x < 32 ? ~0u : 0xffu;
  out[3 * threadIdx.x] = __ballot_sync(mask, lane % 2);
  out[3 * threadIdx.x + 1] = __shfl_down_sync(mask, threadIdx.x, 1);
  unsigned sum = threadIdx.x;
  for (int step = mask == ~0u ? 16 : 4; step > 0; step /= 2)
    sum += __shfl_xor_sync(mask, sum, step);
  out[3 * threadIdx.x + 2] = sum;
}

// Notes the blocks as they come.
__global__ void arrival_kernel(int* out, int* arrived) {
  out[atomicAdd(arrived, 1)] = static_cast<int>(blockIdx.x);
}

// Each block writes one element, another one than the block before, and reads all.
__global__ void leftovers_kernel(double* out) {
  __shared__ double values[kLanes];
  if (threadIdx.x == blockIdx.x) values[threadIdx.x] = 1;
  __syncthreads();
  out[blockIdx.x * kLanes + threadIdx.x] = values[threadIdx.x];
}

// Takes 40 KiB.
__global__ void large_kernel(int* out) {
  constexpr int kNum = 10 << 10;
  __shared__ int values[kNum];
  for (int i = threadIdx.x; i < kNum; i += blockDim.x) values[i] = i;
  __syncthreads();
  out[threadIdx.x] = values[kNum - 1 - threadIdx.x];
}

__global__ void empty_kernel() {}

// Runs a kernel; the message of what went wrong, or nothing.
template <typename... Parameters, typename... Arguments>
const char* run(void (*kernel)(Parameters...), dim3 blocks, dim3 lanes, size_t shared_bytes,
                Arguments... arguments) {
  static std::string message;
  message.clear();
  cudaLaunchConfig_t config;
  config.gridDim = blocks;
  config.blockDim = lanes;
  config.dynamicSmemBytes = shared_bytes;
  try {
    cudaLaunchKernelEx(&config, kernel, arguments...);
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))
EXPORT const char* mirror(int* out, int barrier) {
  return run(mirror_kernel, 1, kLanes, 0, out, barrier);
}
EXPORT const char* part(int* out) { return run(part_kernel, 1, kLanes, 0, out); }
EXPORT const char* warp(unsigned* out) { return run(warp_kernel, 1, 40, 0, out); }
EXPORT const char* arrival(int* out, int* arrived) {
  return run(arrival_kernel, 8, 1, 0, out, arrived);
}
EXPORT const char* leftovers(double* out) { return run(leftovers_kernel, 2, kLanes, 0, out); }
EXPORT const char* large(int* out, size_t shared_bytes) {
  return run(large_kernel, 1, 32, shared_bytes, out);
}
EXPORT const char* empty(const unsigned* grid, const unsigned* block) {
  return run(empty_kernel, dim3(grid[0], grid[1], grid[2]), dim3(block[0], block[1], block[2]), 0);
}
