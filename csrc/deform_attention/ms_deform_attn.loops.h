// SPDX-License-Identifier: BSD-3-Clause
// The loops of deformable attention, over the heads of one query.
#pragma once

#include <cstdint>

#include "../geometry/numbers.h"
#include "../isa/loops.h"

namespace fastdet::cpu {

// The pixels of one image from its first head of interest on: head h of pixel s is the
// `channels` values at data + s * pixel_stride + h * channels.
template <typename T>
struct AttentionMap {
  T* data;
  int64_t pixel_stride, channels;
};

// The level of each of the points of a head, (L, P) as one list.
template <typename S>
struct AttentionPoints {
  int64_t count;
  const S *height, *width;
  const int32_t *rows, *columns, *start;  // height, width, and the level's first pixel in S
};

// T is float, double, Half or BFloat16. Of adjacent heads, the locations (L, P, 2), the weights
// (L, P) and the rows of D channels are adjacent, too.
template <typename T>
struct FASTDET_EXPORT MsDeformAttnLoops {
  // out (heads, D) = the weighted sums of samples. `sums` has room for D values.
  void (*attend)(const AttentionMap<const T>& value, const AttentionPoints<Sum<T>>& points,
                 int64_t heads, const Sum<T>* locations, const Sum<T>* weights, T* out,
                 Sum<T>* sums);
  // Of one head, from the gradient (D) of `out`: adds to the gradient of the value, and writes
  // those of the locations and weights.
  void (*attend_backward)(const AttentionMap<const T>& value, const AttentionPoints<Sum<T>>& points,
                          const Sum<T>* locations, const Sum<T>* weights, const T* grad,
                          const AttentionMap<Sum<T>>& grad_value, Sum<T>* grad_locations,
                          Sum<T>* grad_weights);
  // Writes n dense rows of sums to the pixels of a head.
  void (*store_rows)(const Sum<T>* rows, int64_t n, const AttentionMap<T>& to);
  // The gradient of n logits, in place of that of their softmax.
  void (*softmax_backward)(const Sum<T>* probabilities, int64_t n, Sum<T>* grad);
};

}  // namespace fastdet::cpu
