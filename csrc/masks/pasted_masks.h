// SPDX-License-Identifier: BSD-3-Clause
// The boxes of pasted masks, cut to whole pixels.
#pragma once

#include <vector>

#include "mask_paste.h"
#include "paste_tensors.h"

namespace fastdet::cpu {

inline std::vector<PasteBox> paste_boxes(const Tensor& boxes, int64_t mask_width) {
  const Tensor boxes_in = box_input(boxes, box_dtype(boxes));
  std::vector<PasteBox> pasted(boxes.size(0));
  dispatch_box(box_dtype(boxes), [&]<typename S>() {
    const auto* box = reinterpret_cast<const Box<S>*>(data<S>(boxes_in));
    for (size_t n = 0; n < pasted.size(); ++n)
      pasted[n] = paste_box(box[n], paste_growth<S>(mask_width));
  });
  return pasted;
}

}  // namespace fastdet::cpu
