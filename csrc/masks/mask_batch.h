// SPDX-License-Identifier: BSD-3-Clause
// The masks of a padded batch (B, G, H, W), one byte for each pixel. Host and device, no torch.
#pragma once

#include <cstdint>

#include "../geometry/box.h"

namespace fastdet {

struct MaskBatch {
  const uint8_t* data;
  int64_t masks, height, width;  // `masks` is the number for each image
  int64_t image_stride, mask_stride, row_stride;

  FASTDET_HOST_DEVICE bool has(int64_t match) const { return match >= 0 && match < masks; }

  FASTDET_HOST_DEVICE const uint8_t* mask(int64_t image, int64_t match) const {
    return data + image * image_stride + match * mask_stride;
  }
};

}  // namespace fastdet
