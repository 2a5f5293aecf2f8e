// SPDX-License-Identifier: BSD-3-Clause
// The parts of the CUDA language and runtime that the kernels use, on one CPU thread. Atomics are
// plain operations: only one lane runs at a time, and it stops at barriers alone.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "block.h"

#define __global__
#define __device__
#define __grid_constant__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __restrict__ __restrict
// Blocks run one after another on one thread, so a variable that all lanes see is a static one. As
// thread-local ones these variables, and no others, lie side by side: see static_shared.
#ifdef __SANITIZE_ADDRESS__
#define __shared__ static
#else
#define __shared__ static thread_local
#endif

// Of what stands for one instruction of a GPU. A build that counts (counting.py) must see the
// instruction, and not the memory that the emulator uses for it; so it is not inlined either.
#ifdef FASTDET_COUNTED
#define EMULATED_HOST __attribute__((no_sanitize("thread")))
#else
#define EMULATED_HOST
#endif
#define EMULATED_INSTRUCTION inline EMULATED_HOST

using cuda_emulation::blockDim;
using cuda_emulation::blockIdx;
using cuda_emulation::dim3;
using cuda_emulation::gridDim;
using cuda_emulation::threadIdx;
using std::isfinite;
using std::isnan;

// ---- the runtime --------------------------------------------------------------------------------

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0 };
enum cudaMemcpyKind { cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  void* attrs = nullptr;
  unsigned numAttrs = 0;
};

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const auto body = [&]() EMULATED_HOST { kernel(static_cast<Parameters>(arguments)...); };
  cuda_emulation::run_grid(config->gridDim, config->blockDim, config->dynamicSmemBytes, body,
                           reinterpret_cast<const void*>(kernel));
  return cudaSuccess;
}

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                                   cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  cuda_emulation::count_memset(to, bytes);
  std::memset(to, value, bytes);
  return cudaSuccess;
}

// ---- barriers and what the lanes of a warp tell each other -------------------------------------

using cuda_emulation::Where;

EMULATED_INSTRUCTION void __syncthreads(Where where = Where::current()) {
  cuda_emulation::sync_block(where);
}

// Nothing is reordered on one thread.
inline void __threadfence() {}

EMULATED_INSTRUCTION int __syncthreads_or(int predicate, Where where = Where::current()) {
  static int any;
  cuda_emulation::sync_block(where);
  any = 0;
  cuda_emulation::sync_block(where);
  any |= predicate;
  cuda_emulation::sync_block(where);
  return any != 0;
}

EMULATED_INSTRUCTION void __syncwarp(unsigned mask = ~0u, Where where = Where::current()) {
  cuda_emulation::exchange(mask, 0, where, /*orders_memory=*/true);
}

EMULATED_INSTRUCTION unsigned __ballot_sync(unsigned mask, int predicate,
                                            Where where = Where::current()) {
  const auto& told = cuda_emulation::exchange(mask, predicate != 0, where);
  unsigned ballot = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) ballot |= static_cast<unsigned>(told[lane]) << lane;
  return ballot;
}
EMULATED_INSTRUCTION int __any_sync(unsigned mask, int predicate, Where where = Where::current()) {
  return __ballot_sync(mask, predicate, where) != 0;
}
EMULATED_INSTRUCTION int __all_sync(unsigned mask, int predicate, Where where = Where::current()) {
  return __ballot_sync(mask, !predicate, where) == 0;
}

template <typename T>
EMULATED_INSTRUCTION T __shfl_sync(unsigned mask, T value, int source,
                                   Where where = Where::current()) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = cuda_emulation::exchange(mask, bits, where)[source & 31];
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
template <typename T>
EMULATED_INSTRUCTION T __shfl_xor_sync(unsigned mask, T value, int difference,
                                       Where where = Where::current()) {
  return __shfl_sync(mask, value, cuda_emulation::lane() ^ difference, where);
}
template <typename T>
EMULATED_INSTRUCTION T __shfl_down_sync(unsigned mask, T value, int distance,
                                        Where where = Where::current()) {
  const int source = cuda_emulation::lane() + distance;
  return __shfl_sync(mask, value, source < 32 ? source : cuda_emulation::lane(), where);
}
template <typename T>
EMULATED_INSTRUCTION T __shfl_up_sync(unsigned mask, T value, int distance,
                                      Where where = Where::current()) {
  const int source = cuda_emulation::lane() - distance;
  return __shfl_sync(mask, value, source >= 0 ? source : cuda_emulation::lane(), where);
}

EMULATED_INSTRUCTION int __reduce_max_sync(unsigned mask, int value,
                                           Where where = Where::current()) {
  const auto& told = cuda_emulation::exchange(mask, static_cast<unsigned>(value), where);
  int most = value;
  for (unsigned lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) most = std::max(most, static_cast<int>(told[lane]));
  return most;
}

// ---- single operations --------------------------------------------------------------------------

#ifdef FASTDET_COUNTED
#define EMULATED_ATOMIC(at) \
  cuda_emulation::count_atomic(__builtin_return_address(0), at, sizeof *(at))
#else
#define EMULATED_ATOMIC(at)
#endif

template <typename T>
EMULATED_INSTRUCTION T atomicAdd(T* at, T value) {
  EMULATED_ATOMIC(at);
  const T before = *at;
  *at = before + value;
  return before;
}
template <typename T>
EMULATED_INSTRUCTION T atomicMax(T* at, T value) {
  EMULATED_ATOMIC(at);
  const T before = *at;
  *at = before < value ? value : before;
  return before;
}
template <typename T>
EMULATED_INSTRUCTION T atomicMin(T* at, T value) {
  EMULATED_ATOMIC(at);
  const T before = *at;
  *at = value < before ? value : before;
  return before;
}
template <typename T>
EMULATED_INSTRUCTION T atomicOr(T* at, T value) {
  EMULATED_ATOMIC(at);
  const T before = *at;
  *at = before | value;
  return before;
}

template <typename T>
EMULATED_INSTRUCTION T atomicExch(T* at, T value) {
  EMULATED_ATOMIC(at);
  const T before = *at;
  *at = value;
  return before;
}

template <typename T>
__forceinline__ T __ldg(const T* at) {
  return *at;
}
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }
