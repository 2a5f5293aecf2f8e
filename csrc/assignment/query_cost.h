// SPDX-License-Identifier: BSD-3-Clause
// The cost of matching a query with a ground-truth box (gt), shared by host and device: plain C++,
// no torch. The class cost is computed in S, which is float for half types too; the rest is
// computed in double. In float, exp and log give the same bits on every ISA and device, so the
// matching is the same everywhere. For double logits it is the same up to the last bits of exp and
// log.
#pragma once

#include <cstdint>

#include "../focal_loss/focal_loss.h"
#include "../geometry/box_iou.h"

namespace fastdet {

// A box as DETR has it.
template <typename T>
struct CentredBox {
  T x, y, width, height;
};

template <typename T>
FASTDET_HOST_DEVICE Box<T> corners_of(const CentredBox<T>& b) {
  const T half_width = T(0.5) * b.width, half_height = T(0.5) * b.height;
  return {b.x - half_width, b.y - half_height, b.x + half_width, b.y + half_height};
}

struct QueryWeights {
  double by_class, by_distance, by_giou;
  double alpha, gamma;
};

// As in the matchers of Deformable DETR and RT-DETR; kSquare if gamma is 2. NaN stays NaN.
template <bool kSquare, typename S>
FASTDET_HOST_DEVICE S focal_class_cost(S logit, S alpha, S gamma) {
  constexpr S kEps = S(1e-8);
  const S e = exp_of(logit < S(0) ? logit : -logit);
  const S larger = S(1) / (S(1) + e), smaller = e * larger;
  const S p = logit < S(0) ? smaller : larger, q = logit < S(0) ? larger : smaller;
  const S positive = alpha * focal_power<kSquare>(q, gamma) * -log_of(p + kEps);
  const S negative = (S(1) - alpha) * focal_power<kSquare>(p, gamma) * -log_of(q + kEps);
  return logit == logit ? positive - negative : logit;
}

// A box in both forms.
struct MatchedBox {
  CentredBox<double> centred;
  IouBox<double> corners;

  FASTDET_HOST_DEVICE static MatchedBox of(const CentredBox<double>& box) {
    return {box, iou_box<IouKind::kGeneralized>(corners_of(box))};
  }
};

FASTDET_HOST_DEVICE double distance_of(double a, double b) { return a < b ? b - a : a - b; }

FASTDET_HOST_DEVICE double query_cost(const MatchedBox& query, const MatchedBox& gt,
                                      double class_cost, const QueryWeights& weights) {
  const CentredBox<double>&a = query.centred, &b = gt.centred;
  const double distance = distance_of(a.x, b.x) + distance_of(a.y, b.y) +
                          distance_of(a.width, b.width) + distance_of(a.height, b.height);
  const double giou =
      similarity<IouKind::kGeneralized>(query.corners, gt.corners, pairwise_eps<double>(0));
  return weights.by_distance * distance + weights.by_class * class_cost - weights.by_giou * giou;
}

}  // namespace fastdet
