// SPDX-License-Identifier: BSD-3-Clause
// What the emulator tells a library that counts: which lane runs, and where lanes have met.
#pragma once

#include <cstddef>

#include "block.h"

namespace cuda_emulation {

class Observer {
 public:
  virtual ~Observer() = default;

  virtual void start_launch(const void* function, dim3 grid, dim3 block) = 0;
  virtual void end_launch() = 0;
  virtual void set_memory(const void* to, size_t bytes) = 0;
  virtual void start_block(const void* shared, size_t shared_bytes) = 0;
  // Lane `index` of the block goes on, on this stack; it stops at a barrier or at its end.
  virtual void start_lane(unsigned index, const void* stack, size_t stack_bytes) = 0;
  virtual void stop_lane() = 0;
  // The lanes of a warp that could go on have all stopped.
  virtual void end_turn() = 0;
  // The lanes of `mask` of a warp, or all lanes of the block, have met.
  virtual void meet_in_warp(unsigned warp, unsigned mask, bool orders_memory) = 0;
  virtual void meet_in_block() = 0;
};

extern Observer* observer;  // nullptr: nobody listens

}  // namespace cuda_emulation
