// SPDX-License-Identifier: BSD-3-Clause
// The masks of the mask operators as views of torch tensors.
#pragma once

#include <vector>

#include "../torch.h"
#include "box_channels.h"
#include "mask_batch.h"
#include "mask_paste.h"

namespace fastdet {

// The tensor itself, or a copy if the pixels of its rows are not adjacent.
inline Tensor readable_masks(const Tensor& masks) {
  return masks.stride(3) == 1 ? masks : torch::stable::contiguous(masks);
}

// `masks` is a result of readable_masks.
inline MaskBatch mask_batch(const Tensor& masks) {
  return {data<uint8_t>(masks), masks.size(1),   masks.size(2),  masks.size(3),
          masks.stride(0),      masks.stride(1), masks.stride(2)};
}

// `t` is (B, K, C, h, w) of any strides, with values of type T.
template <typename T>
BoxChannels<T> box_channels(T* data, const Tensor& t) {
  BoxChannels<T> channels = {data, t.size(1), t.size(2), t.size(3), t.size(4), {}};
  for (int64_t d = 0; d < 5; ++d) channels.stride[d] = t.stride(d);
  return channels;
}

// `masks` is contiguous (N, h, w) of type S; there are N boxes.
template <typename S>
PastedMasks<S> pasted_masks(const Tensor& masks, const PasteBox* boxes, int64_t height,
                            int64_t width) {
  return {data<S>(masks), boxes, masks.size(0), masks.size(1), masks.size(2), height, width};
}

}  // namespace fastdet

namespace fastdet::cpu {

// The boxes (N, 4) of pasted masks, cut to whole pixels.
inline std::vector<PasteBox> paste_boxes(const Tensor& boxes, int64_t mask_width) {
  const Tensor boxes_in = box_input(boxes, box_dtype(boxes));
  std::vector<PasteBox> pasted(boxes.size(0));
  dispatch_box(box_dtype(boxes), [&]<typename S>() {
    const auto* box = data<Box<S>>(boxes_in);
    for (size_t n = 0; n < pasted.size(); ++n)
      pasted[n] = paste_box(box[n], paste_growth<S>(mask_width));
  });
  return pasted;
}

}  // namespace fastdet::cpu
