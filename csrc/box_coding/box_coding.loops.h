// SPDX-License-Identifier: BSD-3-Clause
// The loops of box coding, row by row.
#pragma once

#include <cstdint>

#include "../geometry/box_coding.h"
#include "../isa/loops.h"

namespace fastdet::cpu {

template <typename T>
struct ImageSize {
  T width, height;
};

// T is float or double. Decoded boxes are clipped to the size, unless it is null.
template <typename T>
struct FASTDET_EXPORT BoxCodingLoops {
  void (*encode_boxes)(const Box<T>* boxes, const Box<T>* anchors, int64_t n,
                       const Deltas<T>& weights, Deltas<T>* out);
  void (*decode_boxes)(const Deltas<T>* deltas, const Box<T>* anchors, int64_t n,
                       const Deltas<T>& weights, const ImageSize<T>* size, Box<T>* out);
  void (*decode_boxes_backward)(const Box<T>* grad, const Deltas<T>* deltas, const Box<T>* anchors,
                                int64_t n, const Deltas<T>& weights, const ImageSize<T>* size,
                                Deltas<T>* out);
};

}  // namespace fastdet::cpu
