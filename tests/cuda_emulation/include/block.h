// SPDX-License-Identifier: BSD-3-Clause
// A CUDA block on one CPU thread. Each of the block's threads, called a lane here whichever warp it
// is in, is a fiber; a scheduler resumes them one by one, and a lane runs until it waits at a
// barrier, tells its warp something, or ends. Blocks run one after another.
//
// What a GPU leaves open is the order of the lanes between two barriers, how far a warp runs ahead
// of others, and the order of the blocks, so the order is a setting: a kernel whose result changes
// with it lacks a barrier, or has a race. Blocks that wait for each other are not emulated.
//
// Shared memory is left over from nobody: it is poison, NaN to all floating types, when a block
// starts. What no GPU launches is an error: too large a grid or block, or more shared memory than
// kernels have without asking for it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <span>

namespace cuda_emulation {

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Of the lane that runs.
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

// Where in the source a lane waits: the lanes of a block must meet at the same line.
using Where = std::source_location;

// Runs `kernel` once for each thread of the grid. Throws std::runtime_error where a GPU would
// refuse the launch, and where lanes wait for each other forever or at different barriers.
// `function` is the kernel's address, by which it is named.
void run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel,
              const void* function = nullptr);

// A launch that sets memory; run_grid counts itself.
void count_memset(const void* to, size_t bytes);

// The block's dynamic shared memory.
void* dynamic_shared();

// The block's static shared memory: the variables of all kernels, of which a kernel uses some.
// Empty in a build with AddressSanitizer, whose zones between variables need them to be ordinary
// ones.
std::span<std::byte> static_shared();

// Returns when all lanes of the block that have not ended wait here.
void sync_block(Where where);

// Tells `value` to the lanes of the warp in `mask`; returns what each of them told. CUDA promises
// an order of memory accesses only of __syncwarp, which `orders_memory`, not of votes and shuffles.
const std::array<uint64_t, 32>& exchange(unsigned mask, uint64_t value, Where where,
                                         bool orders_memory = false);

// Which of its warp's 32 lanes runs.
int lane();

// Called by an atomic operation before it reads and writes; only where FASTDET_COUNTED.
void count_atomic(const void* caller, const void* at, size_t bytes);

}  // namespace cuda_emulation
