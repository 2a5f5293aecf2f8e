// SPDX-License-Identifier: BSD-3-Clause
// The cost of a prediction for a ground-truth box (gt) in SimOTA, shared by host and device: plain
// C++, no torch. In float, all steps give the same bits on every ISA and device, and so do the
// indices. In double, the logarithm is the standard library's.
#pragma once

#include <limits>

#include "../geometry/maths.h"
#include "assignable.h"

namespace fastdet {

template <typename S>
struct SimotaRule {
  S radius;  // of the centre, in strides
  S cls_weight, iou_weight;
};

// A gt, and its centre.
template <typename S>
struct SimotaGt {
  Box<S> box;
  S x, y;

  FASTDET_HOST_DEVICE static SimotaGt of(const Box<S>& box) {
    return {box, (box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2};
  }

  FASTDET_HOST_DEVICE bool contains(S px, S py) const {
    return px > box.x1 && px < box.x2 && py > box.y1 && py < box.y2;
  }

  // Whether the point is near the centre: `reach` is the radius times the point's stride.
  FASTDET_HOST_DEVICE bool is_centred_at(S px, S py, S reach) const {
    return px > x - reach && px < x + reach && py > y - reach && py < y + reach;
  }
};

// As in torch, no logarithm of the binary cross entropy counts more.
template <typename S>
constexpr S kMostLog = S(100);

template <typename S>
FASTDET_HOST_DEVICE S limited_log(S p) {
  const S log = -log_of(p);
  return p > S(0) && log < kMostLog<S> ? log : kMostLog<S>;
}

// The sum of -log(1 - p) over the classes comes from a product of the 1 - p, so that it needs one
// logarithm. The product has kClassLanes parts, each of which is a mantissa in [1, 2) and an
// exponent of 2, brought to this form after at most kClassSteps factors.
constexpr int kClassLanes = 16, kClassSteps = 16;

// 1 - p; 1 for p = 1, which is counted instead; NaN for a p that is no probability.
FASTDET_HOST_DEVICE double class_factor(double p) {
  const double q = 1 - p;
  const double factor = q == 0 ? 1. : q;
  return q >= 0 && q <= 1 ? factor : std::numeric_limits<double>::quiet_NaN();
}

// Returns the exponent of a normal x > 0, and leaves the mantissa.
FASTDET_HOST_DEVICE int64_t take_exponent(double& x) {
  int64_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  const int64_t exponent = (bits >> 52) - 1023;
  bits -= exponent << 52;
  __builtin_memcpy(&x, &bits, sizeof x);
  return exponent;
}

// The sum, given the product of all mantissas, the sum of all exponents and the number of p = 1.
template <typename S>
FASTDET_HOST_DEVICE S class_sum(double mantissa, int64_t exponent, int64_t ones) {
  return -(static_cast<S>(exponent) * S(0.69314718055994531) + log_of(static_cast<S>(mantissa))) +
         static_cast<S>(ones) * kMostLog<S>;
}

// The cost, given the prediction's class sum, its score for the gt's label and their IoU.
template <typename S>
FASTDET_HOST_DEVICE S simota_cost(S sum, S score, S overlap, const SimotaRule<S>& rule) {
  const S by_class = sum - limited_log(S(1) - score) + limited_log(score);
  return rule.cls_weight * by_class - rule.iou_weight * log_of(overlap + S(1e-7));
}

// How many anchors a gt picks, given its largest IoUs by falling value.
template <typename S>
FASTDET_HOST_DEVICE int64_t simota_picks(const S* overlaps, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(overlaps[i]);
  const int64_t picks = static_cast<int64_t>(sum);
  return picks > 1 ? picks : 1;
}

}  // namespace fastdet
