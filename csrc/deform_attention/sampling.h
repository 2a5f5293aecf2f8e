// SPDX-License-Identifier: BSD-3-Clause
// Where deformable attention samples a level, for host and device: plain C++, no torch. A location
// is a fraction of the level's size (align_corners=False).
#pragma once

#include "../geometry/pixel_sample.h"

namespace fastdet {

template <typename S>
FASTDET_HOST_DEVICE AxisSample<S> axis_sample(S location, S size) {
  return axis_sample_at(location * size - S(0.5), size);
}

}  // namespace fastdet
