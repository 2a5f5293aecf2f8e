// SPDX-License-Identifier: BSD-3-Clause
// The rule of Soft-NMS, shared by host and device: no torch.
#pragma once

#include <algorithm>
#include <limits>

#include "../geometry/maths.h"

namespace fastdet {

enum class SoftNmsMethod { kLinear, kGaussian };

// How the overlap with a picked box lowers a score: the score is multiplied by 1 - IoU if the IoU
// is >= iou_threshold (linear), or by exp(-IoU^2 / sigma) (Gaussian). A box is removed if its score
// is below score_threshold, which is >= 0.
template <typename T>
struct SoftNmsRule {
  SoftNmsMethod method;
  T iou_threshold, sigma, score_threshold;

  FASTDET_HOST_DEVICE T linear_weight(T overlap) const {
    return overlap >= iou_threshold ? T(1) - overlap : T(1);
  }

  FASTDET_HOST_DEVICE T gaussian_weight(T overlap) const {
    return exp_of(-(overlap * overlap) / sigma);
  }

  // The score that is left after the weight; -1 if the box is removed, then or before.
  FASTDET_HOST_DEVICE T left(T score, T weight) const {
    const T decayed = score * weight;
    return score >= T(0) && decayed >= score_threshold ? decayed : T(-1);
  }

  // The score at the beginning, -1 if the box is not usable.
  FASTDET_HOST_DEVICE T first(T score, const Box<T>& box) const {
    const bool usable = score >= score_threshold && is_finite(score) && is_finite(box);
    return usable ? score + T(0) : T(-1);  // -0 becomes 0
  }
};

template <typename T>
SoftNmsRule<T> soft_nms_rule(SoftNmsMethod method, double iou_threshold, double sigma,
                             double score_threshold) {
  return {method, static_cast<T>(iou_threshold),
          std::max(static_cast<T>(sigma), std::numeric_limits<T>::min()),
          static_cast<T>(score_threshold)};
}

}  // namespace fastdet
