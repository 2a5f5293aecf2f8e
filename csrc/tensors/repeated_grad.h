// SPDX-License-Identifier: BSD-3-Clause
// The gradient that the backward of a loss receives. After a sum or a mean it is one number or a
// few, expanded to the shape of the loss. Such a gradient is never copied to its full size.
#pragma once

#include "../torch.h"

namespace fastdet {

// Element i of the gradient is element i / repeat of `compact`, which is contiguous.
struct RepeatedGrad {
  Tensor compact;
  int64_t repeat;
};

inline RepeatedGrad repeated_grad(const Tensor& grad) {
  Tensor compact = grad;
  int64_t repeat = 1;
  for (int64_t d = grad.dim() - 1; d >= 0 && grad.numel() > 0; --d) {
    if (grad.size(d) != 1 && grad.stride(d) != 0) break;
    repeat *= grad.size(d);
    compact = torch::stable::narrow(compact, d, 0, 1);
  }
  return {torch::stable::contiguous(compact), repeat};
}

}  // namespace fastdet
