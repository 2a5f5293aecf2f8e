// SPDX-License-Identifier: BSD-3-Clause
// The masks of a padded batch (B, G, H, W), a byte a pixel, and which of them each box is matched
// with.
#pragma once

#include "../geometry/box.h"
#include "../torch.h"

namespace fastdet {

struct MaskBatch {
  const uint8_t* data;
  int64_t masks, height, width;  // masks an image
  int64_t image_stride, mask_stride, row_stride;

  FASTDET_HOST_DEVICE bool has(int64_t match) const { return match >= 0 && match < masks; }

  FASTDET_HOST_DEVICE const uint8_t* mask(int64_t image, int64_t match) const {
    return data + image * image_stride + match * mask_stride;
  }
};

// Itself, or a copy whose pixels lie side by side.
inline Tensor readable_masks(const Tensor& masks) {
  return masks.stride(3) == 1 ? masks : torch::stable::contiguous(masks);
}

// masks: from readable_masks.
inline MaskBatch mask_batch(const Tensor& masks) {
  return {data<uint8_t>(masks), masks.size(1),   masks.size(2),  masks.size(3),
          masks.stride(0),      masks.stride(1), masks.stride(2)};
}

}  // namespace fastdet
