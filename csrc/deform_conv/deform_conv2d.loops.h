// SPDX-License-Identifier: BSD-3-Clause
// The loops of deformable convolution. A row is an output position of an image; the columns are
// channels, of the input or of the output.
#pragma once

#include <cstdint>

#include "../geometry/numbers.h"
#include "../isa/loops.h"
#include "../isa/panel.h"

namespace fastdet::cpu {

// Where one tap of the kernel samples an image, for one offset group. The arrays have a value for
// each output position of the image, row by row.
template <typename S>
struct DeformTap {
  int64_t height, width, out_width;              // of the image and of a row of output positions
  int64_t stride_y, stride_x, shift_y, shift_x;  // without an offset: position * stride + shift
  const S *offset_y, *offset_x;
  const S* mask;  // null: 1 everywhere
};

// The pixels (H * W, C) of an image from the first of `channels` channels on. `zeros` has as many
// values: they stand for the pixels outside.
template <typename S>
struct DeformMap {
  const S* data;
  int64_t pixel_stride, channels;
  const S* zeros;
};

template <typename S>
struct DeformRows {
  S* data;
  int64_t stride;
};

// The gradients of one tap for one offset group, placed as in DeformTap. mask may be null.
template <typename S>
struct DeformTapGrads {
  S *offset_y, *offset_x, *mask;
};

// T is float, double, Half or BFloat16. The positions are [first, first + n) of an image, the rows
// [0, n).
template <typename T>
struct FASTDET_EXPORT DeformConvLoops {
  // Rows of channels from and to a map of any strides.
  void (*load_rows)(const T* from, int64_t position_stride, int64_t channel_stride, int64_t n,
                    int64_t channels, const DeformRows<Sum<T>>& rows);
  void (*store_rows)(const DeformRows<const Sum<T>>& rows, int64_t n, int64_t channels, T* to,
                     int64_t position_stride, int64_t channel_stride);

  // The columns of a tap: samples times the mask.
  void (*sample)(const DeformMap<Sum<T>>& map, const DeformTap<Sum<T>>& tap, int64_t first,
                 int64_t n, const DeformRows<Sum<T>>& columns);
  // Also, from the gradient of the columns, the gradients of offset and mask.
  void (*sample_backward)(const DeformMap<Sum<T>>& map, const DeformTap<Sum<T>>& tap, int64_t first,
                          int64_t n, const DeformRows<const Sum<T>>& grad_columns,
                          const DeformRows<Sum<T>>& columns, const DeformTapGrads<Sum<T>>& to);
  // Adds the gradient of the columns to that of the pixels.
  void (*scatter)(const DeformTap<Sum<T>>& tap, int64_t first, int64_t n,
                  const DeformRows<const Sum<T>>& grad_columns, int64_t channels,
                  const DeformRows<Sum<T>>& grad_pixels);

  // See multiply_panel of isa/panel_product.h.
  void (*multiply)(const PanelFactor<Sum<T>>& factor, int64_t rows, const Sum<T>* panel,
                   int64_t panel_stride, int64_t depth, bool add, Sum<T>* out, int64_t out_stride);
};

}  // namespace fastdet::cpu
