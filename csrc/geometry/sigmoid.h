// SPDX-License-Identifier: BSD-3-Clause
// The sigmoid of a logit, and the other terms of binary cross entropy. All terms come from e =
// exp(-|x|), which never overflows, and 1 - p is never computed as a difference. Host and device,
// no torch.
#pragma once

#include "maths.h"

namespace fastdet {

// sigmoid(x), sigmoid(-x) and log(1 + exp(-|x|)).
template <typename S>
struct Sigmoid {
  S p, q, log_term;
};

template <typename S>
FASTDET_HOST_DEVICE Sigmoid<S> sigmoid_of(S x) {
  const S e = exp_of(x < S(0) ? x : -x);
  const S larger = S(1) / (S(1) + e), smaller = e * larger;
  return {x < S(0) ? smaller : larger, x < S(0) ? larger : smaller, log1p_of(e)};
}

}  // namespace fastdet
