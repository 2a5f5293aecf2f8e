// SPDX-License-Identifier: BSD-3-Clause
// The masks that are pasted, as tensors.
#pragma once

#include "mask_paste.h"
#include "../torch.h"

namespace fastdet {

// torchvision grows both sides of a box by the width of its mask.
template <typename S>
S paste_growth(int64_t mask_width) {
  return static_cast<S>(static_cast<double>(mask_width + 2) / static_cast<double>(mask_width));
}

// masks: contiguous (N, h, w) of type S; boxes: N of them.
template <typename S>
PastedMasks<S> pasted_masks(const Tensor& masks, const PasteBox* boxes, int64_t height,
                            int64_t width) {
  return {data<S>(masks), boxes, masks.size(0), masks.size(1), masks.size(2), height, width};
}

}  // namespace fastdet
