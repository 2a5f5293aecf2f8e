// SPDX-License-Identifier: BSD-3-Clause
// Converts thresholds: a double to the type of the values that it is compared with, and a threshold
// on probabilities to a bound on logits. Only `sigmoid` also compiles for the device.
#pragma once

#include <cmath>
#include <limits>

#include "box.h"

namespace fastdet {

// The largest T that is not above the threshold: for a T x, `x > round_down<T>(t)` means `x > t`.
template <typename T>
T round_down(double threshold) {
  const T rounded = static_cast<T>(threshold);
  return rounded > threshold ? std::nextafter(rounded, -std::numeric_limits<T>::infinity())
                             : rounded;
}

// For a T x, `x > just_below<T>(t)` means `x >= t` with t rounded to T. For t > 0 it is never
// negative.
template <typename T>
T just_below(double threshold) {
  const T below = std::nextafter(static_cast<T>(threshold), -std::numeric_limits<T>::infinity());
  return below > T(0) ? below : T(0);
}

// The probability of a logit, computed in double and rounded once.
template <typename T>
FASTDET_HOST_DEVICE T sigmoid(T logit) {
  return static_cast<T>(1. / (1. + ::exp(-static_cast<double>(logit))));
}

// For a T x above -inf, `x > logit_bound(t)` means `sigmoid(x) > t`, rounding included. Found by
// bisection, which works because the rounded sigmoid is monotonic.
template <typename T>
T logit_bound(T threshold) {
  T low = T(-800), high = T(800);  // sigmoid is 0 and 1 in every type
  if (sigmoid(low) > threshold) return -std::numeric_limits<T>::infinity();
  if (!(sigmoid(high) > threshold)) return std::numeric_limits<T>::infinity();
  for (;;) {
    const T middle = low + (high - low) / 2;
    if (middle <= low || middle >= high) return low;
    (sigmoid(middle) > threshold ? high : low) = middle;
  }
}

}  // namespace fastdet
