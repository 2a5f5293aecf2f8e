// SPDX-License-Identifier: BSD-3-Clause
// The sizes of a deformable convolution.
#pragma once

#include <cstdint>

#include "../geometry/box.h"

namespace fastdet {

struct DeformConvShape {
  int64_t images, channels, height, width;
  int64_t outputs, out_height, out_width;
  int64_t kernel_height, kernel_width;
  int64_t stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x;
  int64_t groups, offset_groups;

  FASTDET_HOST_DEVICE int64_t taps() const { return kernel_height * kernel_width; }
  FASTDET_HOST_DEVICE int64_t pixels() const { return height * width; }
  FASTDET_HOST_DEVICE int64_t positions() const { return out_height * out_width; }  // of an image
  FASTDET_HOST_DEVICE int64_t all_positions() const { return images * positions(); }
  FASTDET_HOST_DEVICE int64_t group_channels() const { return channels / groups; }
  FASTDET_HOST_DEVICE int64_t group_outputs() const { return outputs / groups; }
  FASTDET_HOST_DEVICE int64_t offset_group_channels() const { return channels / offset_groups; }
};

// The number of positions at which a kernel of `kernel` taps fits along a side; 0 if it does not.
inline int64_t conv_positions(int64_t size, int64_t kernel, int64_t stride, int64_t padding,
                              int64_t dilation) {
  const int64_t room = size + 2 * padding - (dilation * (kernel - 1) + 1);
  return room < 0 ? 0 : room / stride + 1;
}

}  // namespace fastdet
