// SPDX-License-Identifier: BSD-3-Clause
// One access of one lane to global or shared memory, as hooks.cpp tells it.
#pragma once

#include <cstdint>

namespace cuda_emulation {

enum class Space : uint8_t { kGlobal, kShared };
enum class Kind : uint8_t { kRead, kWrite, kAtomic };

struct Access {
  uint32_t place;  // the return address in the library: which instruction it is
  Space space;
  Kind kind;
  uintptr_t address;
  unsigned bytes;  // 1, 2, 4, 8 or 16
  unsigned lane;   // of the block
};

}  // namespace cuda_emulation
