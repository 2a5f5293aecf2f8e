// SPDX-License-Identifier: BSD-3-Clause
// The alignment of a prediction with a ground-truth box (gt), shared by host and device: plain C++,
// no torch. In float, all steps give the same bits on every ISA and device, and so do the indices.
// In double, atan, and exp and log for exponents without a shorter form, are the standard
// library's.
#pragma once

#include <cmath>

#include "../geometry/box_iou.h"

namespace fastdet {

// Exponents whose power has a shorter and more exact form than exp(exponent * log(x)).
enum class Power { kGeneral, kHalf, kOne, kSix };

inline Power power_of(double exponent) {
  return exponent == 0.5 ? Power::kHalf
         : exponent == 1 ? Power::kOne
         : exponent == 6 ? Power::kSix
                         : Power::kGeneral;
}

FASTDET_HOST_DEVICE float root_of(float x) { return ::sqrtf(x); }
FASTDET_HOST_DEVICE double root_of(double x) { return ::sqrt(x); }

// x^exponent for x >= 0; 0^0 is 1. At most e^88 in float.
template <Power power, typename S>
FASTDET_HOST_DEVICE S raised(S x, S exponent) {
  if constexpr (power == Power::kHalf) return root_of(x);
  if constexpr (power == Power::kOne) return x;
  if constexpr (power == Power::kSix) {
    const S cube = x * x * x;
    return cube * cube;
  }
  const S log = exponent * log_of(x);
  const S power_of_x = exp_of(log < S(88) ? log : S(88));
  return exponent == S(0) ? S(1) : x > S(0) ? power_of_x : S(0);
}

template <typename S>
struct TaskAlignment {
  S alpha, beta;
  Power alpha_power, beta_power;
  S min_side;  // of the box in which a gt has candidates
};

template <typename S>
TaskAlignment<S> task_alignment(double alpha, double beta, double min_side) {
  return {static_cast<S>(alpha), static_cast<S>(beta), power_of(alpha), power_of(beta),
          static_cast<S>(min_side)};
}

// Added to the largest alignment of a gt before an alignment is divided by it.
template <typename S>
constexpr S kAlignmentEps = S(1e-9);

// The metric of an anchor, given the largest alignment and overlap of its gt's anchors.
template <typename S>
FASTDET_HOST_DEVICE S normalised(S alignment, S most_aligned, S most_overlap) {
  return alignment * most_overlap / (most_aligned + kAlignmentEps<S>);
}

// Whether a gt takes part.
template <typename S>
FASTDET_HOST_DEVICE bool is_assignable(const Box<S>& gt) {
  return is_finite(gt) && gt.x1 < gt.x2 && gt.y1 < gt.y2;
}

template <typename S>
FASTDET_HOST_DEVICE void widen(S& low, S& high, S least) {
  if (!(high - low < least)) return;
  const S centre = (low + high) / 2;
  low = centre - least / 2;
  high = centre + least / 2;
}

// The box whose points are the candidates of a gt.
template <typename S>
FASTDET_HOST_DEVICE Box<S> candidate_box(Box<S> gt, S min_side) {
  widen(gt.x1, gt.x2, min_side);
  widen(gt.y1, gt.y2, min_side);
  return gt;
}

template <typename S>
FASTDET_HOST_DEVICE bool is_inside(S x, S y, const Box<S>& box) {
  return x > box.x1 && x < box.x2 && y > box.y1 && y < box.y2;
}

// The complete IoU, or 0 if that is not above 0.
template <typename S>
FASTDET_HOST_DEVICE S overlap_of(const IouBox<S>& gt, const Box<S>& box) {
  const S overlap =
      similarity<IouKind::kComplete>(gt, iou_box<IouKind::kComplete>(box), pairwise_eps<S>(1e-7));
  return overlap > S(0) ? overlap : S(0);
}

// 0 if it is no finite number above 0.
template <Power alpha, Power beta, typename S>
FASTDET_HOST_DEVICE S alignment_of(S score, S overlap, const TaskAlignment<S>& rule) {
  const S power = raised<alpha>(score > S(0) ? score : S(0), rule.alpha);
  const S product = power * raised<beta>(overlap, rule.beta);
  return product > S(0) && is_finite(product) && score >= S(0) ? product : S(0);
}

// Calls body<alpha, beta>() with the forms of the powers.
template <typename S, typename Body>
FASTDET_HOST_DEVICE auto dispatch_powers(const TaskAlignment<S>& rule, Body body) {
  const bool six = rule.beta_power == Power::kSix;
  if (rule.alpha_power == Power::kHalf && six)
    return body.template operator()<Power::kHalf, Power::kSix>();
  if (rule.alpha_power == Power::kOne && six)
    return body.template operator()<Power::kOne, Power::kSix>();
  return body.template operator()<Power::kGeneral, Power::kGeneral>();
}

}  // namespace fastdet
