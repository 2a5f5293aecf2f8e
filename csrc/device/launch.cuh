// SPDX-License-Identifier: BSD-3-Clause
// How every kernel is launched: on the tensor's device, on torch's current stream, with a check of
// the launch. All kernels are started by launch(...), never by <<<>>>, so that another compiler can
// run them without a GPU (tests/cuda_emulation).
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <cstdint>

#include "../torch.h"

#ifndef STD_CUDA_CHECK  // in torch 2.11 no other header of its stable ABI includes this one
#include <torch/csrc/stable/macros.h>
#endif

namespace fastdet::cuda {

using torch::stable::accelerator::DeviceGuard;

constexpr int kThreads = 256;

inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
            cudaStream_t stream, Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  STD_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

template <typename Body>
__global__ void for_each_kernel(int64_t n, Body body) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) body(i);
}

// Calls body(i) for each i in [0, n): one thread for each i, up to a grid that fills any GPU;
// beyond that, with a stride.
template <typename Body>
void for_each(int64_t n, cudaStream_t stream, Body body) {
  const int64_t blocks = std::min<int64_t>((n + kThreads - 1) / kThreads, 1 << 16);
  launch(for_each_kernel<Body>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, n,
         body);
}

}  // namespace fastdet::cuda
