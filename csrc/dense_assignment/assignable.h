// SPDX-License-Identifier: BSD-3-Clause
// Which ground-truth boxes (gts) take part in dense assignment. Host and device, no torch.
#pragma once

#include "../geometry/box.h"

namespace fastdet {

template <typename S>
FASTDET_HOST_DEVICE bool is_assignable(const Box<S>& gt) {
  return is_finite(gt) && gt.x1 < gt.x2 && gt.y1 < gt.y2;
}

// The labelled gts of a batch.
template <typename S>
struct LabelledGts {
  const int64_t* labels;  // (B, G)
  const Box<S>* boxes;    // (B, G)
  const int64_t* counts;  // (B,), any values
  int64_t num_gts, num_classes;

  // `row` counts the gts of all images.
  FASTDET_HOST_DEVICE bool takes_part(int64_t row) const {
    if (row % num_gts >= counts[row / num_gts]) return false;
    const int64_t label = labels[row];
    return label >= 0 && label < num_classes && is_assignable(boxes[row]);
  }
};

}  // namespace fastdet
