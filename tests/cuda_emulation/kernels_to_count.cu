// SPDX-License-Identifier: BSD-3-Clause
// Small kernels of one block whose requests, bank conflicts and races are known.
#include "include/cuda_runtime.h"

namespace {

constexpr int kSide = 32;

// Each lane reads one value, `step` values after its neighbour's, and writes its own.
__global__ void copy_kernel(const int* in, int* out, int step) {
  out[threadIdx.x] = in[threadIdx.x * step];
}

struct alignas(16) Four {
  int values[4];
};

__global__ void copy_fours_kernel(const Four* in, Four* out) { out[threadIdx.x] = in[threadIdx.x]; }

// Lane i reads i + 1 values, one in each iteration.
__global__ void triangle_kernel(const int* in, int* out) {
  int sum = 0;
  for (unsigned i = 0; i <= threadIdx.x; ++i) sum += in[i * kSide + threadIdx.x];
  out[threadIdx.x] = sum;
}

// Each warp reads columns of a tile that it wrote by rows.
template <int kWidth>
__global__ void turn_kernel(int* out) {
  __shared__ int tile[kSide][kWidth];
  const int lane = threadIdx.x;
  for (int row = 0; row < kSide; ++row) tile[row][lane] = row;
  __syncthreads();
  int sum = 0;
  for (int row = 0; row < kSide; ++row) sum += tile[lane][row];
  out[lane] = sum;
}

// Lanes add to one of `places` counters.
__global__ void histogram_kernel(int* out, int places) {
  __shared__ int counters[kSide];
  counters[threadIdx.x % kSide] = 0;
  __syncthreads();
  atomicAdd(&counters[threadIdx.x % places], 1);
  __syncthreads();
  atomicAdd(&out[threadIdx.x % kSide], counters[threadIdx.x % kSide]);
}

// ---- races ------------------------------------------------------------------------------------

enum Between { kNothing, kShuffle, kWarpBarrier, kBlockBarrier };

__device__ void wait(int between) {
  if (between == kShuffle) __shfl_sync(~0u, 0, 0);
  if (between == kWarpBarrier) __syncwarp();
  if (between == kBlockBarrier) __syncthreads();
}

// Each lane adds to one word, a lost update; then each in its turn with a barrier between.
__global__ void add_kernel(int* out, int between) {
  __shared__ int sum;
  if (threadIdx.x == 0) sum = 0;
  __syncthreads();
  for (unsigned lane = 0; lane < blockDim.x; ++lane) {
    if (threadIdx.x == lane || between == kNothing) sum += 1;
    wait(between);
    if (between == kNothing) break;
  }
  __syncthreads();
  out[threadIdx.x] = sum;
}

// Each lane reads what another wrote before the barrier, and writes its own again.
__global__ void pass_on_kernel(int* out, int between) {
  __shared__ int values[2 * kSide];
  const unsigned other = blockDim.x - 1 - threadIdx.x;
  values[threadIdx.x] = 1;
  __syncthreads();
  const int value = values[other];
  wait(between);
  values[threadIdx.x] = value + 1;
  __syncthreads();
  out[threadIdx.x] = values[other];
}

// Lanes set bits, and look whether the others have: a race, of a volatile read, too.
template <typename Word>
__global__ void signal_kernel(int* out) {
  __shared__ unsigned bits;
  if (threadIdx.x == 0) bits = 0;
  __syncthreads();
  atomicOr(&bits, 1u << threadIdx.x);
  out[threadIdx.x] = static_cast<int>(*static_cast<Word*>(&bits));
}

// As NMS resolves a front: lane k waits for lane k - 1. In each round the lanes read the words, and
// then set their own bits, until no lane of the block waits. The words lie behind 40 KiB.
template <int kCopy>
__global__ void front_kernel(int* out, int between) {
  constexpr int kWords = 10 << 10;
  __shared__ unsigned words[kWords + 2];
  unsigned* const bits = words + kWords;
  const unsigned lane = threadIdx.x;
  words[kCopy + lane] = 0;
  if (lane < 2) bits[lane] = 0;
  bool waits = true;
  while (__syncthreads_or(waits)) {
    const unsigned before = lane > 0 ? lane - 1 : 0;
    const volatile unsigned* const word = bits + before / kSide;
    const bool ready = waits && (lane == 0 || (*word >> before % kSide & 1));
    wait(between);
    if (ready) atomicOr(bits + lane / kSide, 1u << lane % kSide);
    waits = waits && !ready;
  }
  out[lane] = static_cast<int>(bits[lane / kSide] >> lane % kSide & 1) + words[kCopy + lane];
}

// Neighbours write the bytes of a word: no race.
__global__ void bytes_kernel(int* out) {
  __shared__ unsigned char bytes[kSide];
  bytes[threadIdx.x] = static_cast<unsigned char>(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = bytes[kSide - 1 - threadIdx.x];
}

template <typename... Parameters, typename... Arguments>
void run(void (*kernel)(Parameters...), int lanes, Arguments... arguments) {
  cudaLaunchConfig_t config;
  config.blockDim = dim3(lanes);
  cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default"))) void
EXPORT copy(const int* in, int* out, int lanes, int step) {
  run(copy_kernel, lanes, in, out, step);
}
EXPORT copy_fours(const Four* in, Four* out) { run(copy_fours_kernel, kSide, in, out); }
EXPORT triangle(const int* in, int* out) { run(triangle_kernel, kSide, in, out); }
EXPORT turn(int* out, int padded) {
  run(padded ? turn_kernel<kSide + 1> : turn_kernel<kSide>, kSide, out);
}
EXPORT histogram(int* out, int places) { run(histogram_kernel, kSide, out, places); }
EXPORT add(int* out, int lanes, int between) { run(add_kernel, lanes, out, between); }
EXPORT pass_on(int* out, int lanes, int between) { run(pass_on_kernel, lanes, out, between); }
EXPORT signal_others(int* out, int is_volatile) {
  run(is_volatile ? signal_kernel<volatile unsigned> : signal_kernel<unsigned>, kSide, out);
}
EXPORT resolve_front(int* out, int copy, int between) {
  run(copy ? front_kernel<1> : front_kernel<0>, 2 * kSide, out, between);
}
EXPORT bytes(int* out) { run(bytes_kernel, kSide, out); }
