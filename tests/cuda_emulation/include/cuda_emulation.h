// SPDX-License-Identifier: BSD-3-Clause
// Included before everything else when a .cu file is compiled for the CPU. The kernels register as
// the ops fastdet_emulated::x for CPU tensors (fastdet_counted::x, see counting.py); what only a
// GPU has is replaced: the language's qualifiers and built-ins here, the threads in block.h, the
// runtime in cuda_runtime.h.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "cuda_runtime.h"

namespace torch::stable::accelerator {
struct NoDeviceGuard {
  explicit NoDeviceGuard(int) {}
};
}  // namespace torch::stable::accelerator

inline int32_t aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}

#undef STD_CUDA_CHECK
#define STD_CUDA_CHECK(call) \
  if ((call) != cudaSuccess) throw std::runtime_error(#call)

// From here on, past torch's own headers.
#ifdef FASTDET_COUNTED
#define fastdet fastdet_counted
#else
#define fastdet fastdet_emulated
#endif
#define CUDA CPU
#define DeviceGuard NoDeviceGuard
