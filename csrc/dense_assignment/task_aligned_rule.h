// SPDX-License-Identifier: BSD-3-Clause
// The alignment of a prediction with a ground-truth box (gt), shared by host and device: plain C++,
// no torch. In float, all steps give the same bits on every ISA and device, and so do the indices.
// In double, atan, and exp and log for exponents without a shorter form, are the standard
// library's.
#pragma once

#include <cmath>

#include "../geometry/box_iou.h"
#include "assignable.h"

namespace fastdet {

// The exponents of score and overlap: those of Ultralytics and of the paper have powers that are
// shorter and more exact than exp(exponent * log(x)).
enum class Powers { kHalfAndSix, kOneAndSix, kGeneral };

template <typename S>
struct TaskAlignment {
  S alpha, beta;
  Powers powers;
  S min_side;  // of the box in which a gt has candidates
};

template <typename S>
TaskAlignment<S> task_alignment(double alpha, double beta, double min_side) {
  const Powers powers = beta == 6 && alpha == 0.5 ? Powers::kHalfAndSix
                        : beta == 6 && alpha == 1 ? Powers::kOneAndSix
                                                  : Powers::kGeneral;
  return {static_cast<S>(alpha), static_cast<S>(beta), powers, static_cast<S>(min_side)};
}

FASTDET_HOST_DEVICE float root_of(float x) { return ::sqrtf(x); }
FASTDET_HOST_DEVICE double root_of(double x) { return ::sqrt(x); }

// x^exponent for x >= 0; 0^0 is 1. At most e^88.
template <typename S>
FASTDET_HOST_DEVICE S raised(S x, S exponent) {
  const S log = exponent * log_of(x);
  const S power = exp_of(log < S(88) ? log : S(88));
  return exponent == S(0) ? S(1) : x > S(0) ? power : S(0);
}

// Added to the largest alignment of a gt before an alignment is divided by it.
template <typename S>
constexpr S kAlignmentEps = S(1e-9);

// The metric of an anchor, given the largest alignment and overlap of its gt's anchors.
template <typename S>
FASTDET_HOST_DEVICE S normalised(S alignment, S most_aligned, S most_overlap) {
  return alignment * most_overlap / (most_aligned + kAlignmentEps<S>);
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

// The alignment; 0 if it is no finite number above 0.
template <Powers powers, typename S>
FASTDET_HOST_DEVICE S alignment_of(S score, S overlap, const TaskAlignment<S>& rule) {
  const S usable = score > S(0) ? score : S(0);
  S product;
  if constexpr (powers == Powers::kGeneral) {
    product = raised(usable, rule.alpha) * raised(overlap, rule.beta);
  } else {
    const S cube = overlap * overlap * overlap;
    product = (powers == Powers::kHalfAndSix ? root_of(usable) : usable) * (cube * cube);
  }
  return product > S(0) && is_finite(product) && score >= S(0) ? product : S(0);
}

template <typename S>
FASTDET_HOST_DEVICE S alignment_of(S score, S overlap, const TaskAlignment<S>& rule) {
  if (rule.powers == Powers::kHalfAndSix)
    return alignment_of<Powers::kHalfAndSix>(score, overlap, rule);
  if (rule.powers == Powers::kOneAndSix)
    return alignment_of<Powers::kOneAndSix>(score, overlap, rule);
  return alignment_of<Powers::kGeneral>(score, overlap, rule);
}

}  // namespace fastdet
