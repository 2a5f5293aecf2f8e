// SPDX-License-Identifier: BSD-3-Clause
// A RepeatedGrad as plain arrays, block by block, for loops that read one number for each element.
#pragma once

#include <algorithm>

#include "../tensors/repeated_grad.h"

namespace fastdet::cpu {

constexpr int64_t kGradBlock = 1024;

// body(i, count, grad): grad[0, count) belongs to the elements [i, i + count) of [begin, end).
template <typename T, typename Body>
void for_grad_blocks(const RepeatedGrad& grad, int64_t begin, int64_t end, const Body& body) {
  const T* values = data<T>(grad.compact);
  T block[kGradBlock];
  for (int64_t i = begin; i < end; i += kGradBlock) {
    const int64_t count = std::min(kGradBlock, end - i);
    if (grad.repeat == 1) {
      body(i, count, values + i);
      continue;
    }
    for (int64_t j = 0; j < count;) {
      const int64_t group = (i + j) / grad.repeat;
      const int64_t run = std::min(count - j, (group + 1) * grad.repeat - (i + j));
      std::fill_n(block + j, run, values[group]);
      j += run;
    }
    body(i, count, block);
  }
}

}  // namespace fastdet::cpu
