// SPDX-License-Identifier: BSD-3-Clause
// The loop over the pixels of a mask whose edges are wanted.
#pragma once

#include <cstdint>

#include "../isa/loops.h"

namespace fastdet::cpu {

struct FASTDET_EXPORT MaskEdgeLoops {
  // Writes the places x in [0, n), rising, at which row[x] differs from above[x]. Returns how many.
  int64_t (*find_changes)(const uint8_t* above, const uint8_t* row, int64_t n, int32_t* places);
};

}  // namespace fastdet::cpu
