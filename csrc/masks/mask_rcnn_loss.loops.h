// SPDX-License-Identifier: BSD-3-Clause
// Included by loops.cpp inside the namespace of an ISA. Binary cross entropy by e = exp(-|x|), as
// in ../sigmoid_focal_loss.h; added up in an order that vectors can keep.

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
