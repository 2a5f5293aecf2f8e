// SPDX-License-Identifier: BSD-3-Clause
// Which ground-truth boxes (gts) take part in dense assignment. Host and device, no torch.
#pragma once

#include "../geometry/box.h"

namespace fastdet {

template <typename S>
FASTDET_HOST_DEVICE bool is_assignable(const Box<S>& gt) {
  return is_finite(gt) && gt.x1 < gt.x2 && gt.y1 < gt.y2;
}

}  // namespace fastdet
