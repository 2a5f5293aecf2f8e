// SPDX-License-Identifier: BSD-3-Clause
// What a head says of each box of a padded batch, channel by channel: (B, K, C, h, w) of any
// strides, its boxes counted through the images.
#pragma once

#include "../geometry/box.h"
#include "../torch.h"

namespace fastdet {

template <typename T>
struct BoxChannels {
  T* data;
  int64_t rows_per_image, channels, height, width, stride[5];

  BoxChannels(T* first, const Tensor& t)
      : data(first),
        rows_per_image(t.size(1)),
        channels(t.size(2)),
        height(t.size(3)),
        width(t.size(4)) {
    for (int64_t d = 0; d < 5; ++d) stride[d] = t.stride(d);
  }

  FASTDET_HOST_DEVICE bool has(int64_t channel) const { return channel >= 0 && channel < channels; }

  FASTDET_HOST_DEVICE T& at(int64_t n, int64_t channel, int64_t y, int64_t x) const {
    return data[n / rows_per_image * stride[0] + n % rows_per_image * stride[1] +
                channel * stride[2] + y * stride[3] + x * stride[4]];
  }
};

}  // namespace fastdet
