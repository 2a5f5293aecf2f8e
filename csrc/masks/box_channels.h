// SPDX-License-Identifier: BSD-3-Clause
// The output of a mask head for each box of a padded batch: (B, K, C, h, w) of any strides. Boxes
// are numbered over all images. Host and device, no torch.
#pragma once

#include <cstdint>

#include "../geometry/box.h"

namespace fastdet {

template <typename T>
struct BoxChannels {
  T* data;
  int64_t rows_per_image, channels, height, width, stride[5];

  FASTDET_HOST_DEVICE bool has(int64_t channel) const { return channel >= 0 && channel < channels; }

  FASTDET_HOST_DEVICE T& at(int64_t n, int64_t channel, int64_t y, int64_t x) const {
    return data[n / rows_per_image * stride[0] + n % rows_per_image * stride[1] +
                channel * stride[2] + y * stride[3] + x * stride[4]];
  }
};

}  // namespace fastdet
