// SPDX-License-Identifier: BSD-3-Clause
// Boxes as one array for each coordinate, so that a loop over boxes fills whole vectors.
#pragma once

namespace fastdet::cpu {

template <typename T>
struct BoxPlanes {
  T *x1, *y1, *x2, *y2, *area;
};

}  // namespace fastdet::cpu
