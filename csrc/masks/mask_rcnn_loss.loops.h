// SPDX-License-Identifier: BSD-3-Clause
// The loop of Mask R-CNN's loss, over the logits of one box.
#pragma once

#include <cstdint>

#include "../isa/loops.h"

namespace fastdet::cpu {

// S is float or double.
template <typename S>
struct FASTDET_EXPORT MaskLossLoops {
  // The sum of the binary cross entropies of n logits, and the derivative of each.
  S (*mask_loss)(const S* logits, const S* targets, int64_t n, S* residual);
};

}  // namespace fastdet::cpu
