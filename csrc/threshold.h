// SPDX-License-Identifier: BSD-3-Clause
// A threshold given as a double, in the type of the values it is compared with. Host only.
#pragma once

#include <cmath>
#include <limits>

namespace fastdet {

// The largest T not above the threshold: for a T x, `x > round_down<T>(t)` means `x > t`.
template <typename T>
T round_down(double threshold) {
  const T rounded = static_cast<T>(threshold);
  return rounded > threshold ? std::nextafter(rounded, -std::numeric_limits<T>::infinity())
                             : rounded;
}

}  // namespace fastdet
