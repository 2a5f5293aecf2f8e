// SPDX-License-Identifier: BSD-3-Clause
// The focal loss of one logit and its derivative, shared by host and device: plain C++, no torch.
//
//   loss = w s^gamma ce,  p = sigmoid(x),  ce = -t log(p) - (1 - t) log(1 - p)
//   s = p (1 - t) + (1 - p) t,  w = alpha t + (1 - alpha) (1 - t), or 1 for alpha < 0
//
// The loss of target 1 at x is the loss of target 0 at -x. So class labels need only the loss of
// target 0.
#pragma once

#include "../geometry/sigmoid.h"

namespace fastdet {

template <typename S>
struct FocalWeights {
  S positive, negative, gamma;
};

template <typename S>
FASTDET_HOST_DEVICE FocalWeights<S> focal_weights(double alpha, double gamma) {
  const double positive = alpha < 0 ? 1 : alpha, negative = alpha < 0 ? 1 : 1 - alpha;
  return {static_cast<S>(positive), static_cast<S>(negative), static_cast<S>(gamma)};
}

// s^gamma for s in [0, 1]; kSquare if gamma is 2.
template <bool kSquare, typename S>
FASTDET_HOST_DEVICE S focal_power(S s, S gamma) {
  if constexpr (kSquare) return s * s;
  const S power = exp_of(gamma * log_of(s));
  const S at_zero = gamma == S(0) ? S(1) : S(0);
  return s < S(1.17549435e-38) ? at_zero : power;
}

// The functions below take a logit together with its sigmoid.

// For target 0, without a weight.
template <bool kSquare, typename S>
FASTDET_HOST_DEVICE S focal_loss(S x, const Sigmoid<S>& sigmoid, S gamma) {
  return focal_power<kSquare>(sigmoid.p, gamma) * (max_of(x, S(0)) + sigmoid.log_term);
}

template <bool kSquare, typename S>
FASTDET_HOST_DEVICE S focal_loss_backward(S x, const Sigmoid<S>& sigmoid, S gamma) {
  const S ce = max_of(x, S(0)) + sigmoid.log_term;
  return focal_power<kSquare>(sigmoid.p, gamma) * (gamma * sigmoid.q * ce + sigmoid.p);
}

// A sum of positive terms. The usual max(x, 0) - x t would lose digits by cancellation.
template <typename S>
FASTDET_HOST_DEVICE S dense_cross_entropy(S x, S t, const Sigmoid<S>& sigmoid) {
  return (x < S(0) ? -x * t : x * (S(1) - t)) + sigmoid.log_term;
}

// For any target t, with the weight.
template <bool kSquare, typename S>
FASTDET_HOST_DEVICE S dense_focal_loss(S x, S t, const Sigmoid<S>& sigmoid,
                                       const FocalWeights<S>& w) {
  const S ce = dense_cross_entropy(x, t, sigmoid);
  const S s = sigmoid.p * (S(1) - t) + sigmoid.q * t;
  const S weight = w.positive * t + w.negative * (S(1) - t);
  return weight * focal_power<kSquare>(s, w.gamma) * ce;
}

template <bool kSquare, typename S>
FASTDET_HOST_DEVICE S dense_focal_loss_backward(S x, S t, const Sigmoid<S>& sigmoid,
                                                const FocalWeights<S>& w) {
  const S ce = dense_cross_entropy(x, t, sigmoid);
  const S s = sigmoid.p * (S(1) - t) + sigmoid.q * t;
  const S weight = w.positive * t + w.negative * (S(1) - t);
  const S by_ce = sigmoid.p * (S(1) - t) - sigmoid.q * t;
  const S by_s = sigmoid.p * sigmoid.q * (S(1) - 2 * t);
  if constexpr (kSquare) return weight * s * (w.gamma * by_s * ce + s * by_ce);
  // The derivative of log s stays finite even if s^(gamma - 1) does not.
  const S by_log = by_s / (s > S(0) ? s : S(1));
  return weight * focal_power<kSquare>(s, w.gamma) * (w.gamma * by_log * ce + by_ce);
}

}  // namespace fastdet
