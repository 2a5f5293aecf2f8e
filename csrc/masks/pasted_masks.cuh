// SPDX-License-Identifier: BSD-3-Clause
// The boxes of pasted masks, cut to whole pixels. This is a launch of its own, because boxes and
// masks may have different types.
#pragma once

#include "../device/launch.cuh"
#include "tensors.h"

namespace fastdet::cuda {

template <typename S>
void cut_boxes(const Tensor& boxes, S growth, const Tensor& cut) {
  const auto* box = reinterpret_cast<const Box<S>*>(data<S>(boxes));
  auto* const out = reinterpret_cast<PasteBox*>(mutable_data<int64_t>(cut));
  for_each(boxes.size(0), current_stream(boxes),
           [=] __device__(int64_t n) { out[n] = paste_box(box[n], growth); });
}

// (N, 4) int64, one PasteBox for each row.
inline Tensor paste_boxes(const Tensor& boxes, int64_t mask_width) {
  const Tensor boxes_in = box_input(boxes, box_dtype(boxes));
  const Tensor cut = empty(boxes, {boxes.size(0), 4}, kInt64);
  dispatch_box(box_dtype(boxes),
               [&]<typename S>() { cut_boxes(boxes_in, paste_growth<S>(mask_width), cut); });
  return cut;
}

inline const PasteBox* paste_boxes_of(const Tensor& cut) {
  return reinterpret_cast<const PasteBox*>(data<int64_t>(cut));
}

}  // namespace fastdet::cuda
