// SPDX-License-Identifier: BSD-3-Clause
// Binary cross entropy from e = exp(-|x|) (geometry/sigmoid.h), in 16 partial sums, an order that
// vectors of any width can keep.
#include "mask_rcnn_loss.loops.h"

#include "../geometry/sigmoid.h"

namespace fastdet::cpu::FASTDET_ISA {

namespace {

template <typename S>
S mask_loss(const S* __restrict__ logits, const S* __restrict__ targets, int64_t n,
            S* __restrict__ residual) {
  constexpr int64_t kLanes = 16;
  S lanes[kLanes] = {};
  const auto add = [&](int64_t i, int64_t lane) {
    const Sigmoid<S> sigmoid = sigmoid_of(logits[i]);
    residual[i] = sigmoid.p - targets[i];
    lanes[lane] += (max_of(logits[i], S(0)) - logits[i] * targets[i]) + sigmoid.log_term;
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int64_t l = 0; l < kLanes; ++l) add(i + l, l);
  for (; i < n; ++i) add(i, i % kLanes);
  S sum = S(0);
  for (const S lane : lanes) sum += lane;
  return sum;
}

template <typename S>
constexpr MaskLossLoops<S> kLoops = {
    .mask_loss = mask_loss<S>,
};

}  // namespace

FASTDET_LOOPS(MaskLossLoops<float>) { return kLoops<float>; }
FASTDET_LOOPS(MaskLossLoops<double>) { return kLoops<double>; }

}  // namespace fastdet::cpu::FASTDET_ISA
