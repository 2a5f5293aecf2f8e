// SPDX-License-Identifier: BSD-3-Clause
// The softmax of one row of logits, with the same order of additions on every ISA.
#include "softmax.loops.h"

#include "../geometry/maths.h"

namespace fastdet::cpu::FASTDET_ISA {

namespace {

// The number of partial sums is the same on every ISA, so that all round in the same way. They are
// added in pairs, which rounds least.
constexpr int64_t kSoftmaxLanes = 16;

template <typename T>
void softmax(const T* logits, int64_t n, Sum<T>* __restrict__ out) {
  using S = Sum<T>;
  S largest = -__builtin_huge_val();
  for (int64_t i = 0; i < n; ++i) {
    out[i] = static_cast<S>(logits[i]);
    largest = out[i] > largest ? out[i] : largest;
  }
  S sums[kSoftmaxLanes] = {};
  int64_t i = 0;
  for (; i + kSoftmaxLanes <= n; i += kSoftmaxLanes)
    for (int64_t lane = 0; lane < kSoftmaxLanes; ++lane) {
      out[i + lane] = exp_of(out[i + lane] - largest);
      sums[lane] += out[i + lane];
    }
  for (int64_t lane = 0; i < n; ++i, ++lane) {
    out[i] = exp_of(out[i] - largest);
    sums[lane] += out[i];
  }
  for (int64_t half = kSoftmaxLanes / 2; half > 0; half /= 2)
    for (int64_t lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  for (i = 0; i < n; ++i) out[i] /= sums[0];
}

template <typename T>
constexpr SoftmaxLoops<T> kLoops = {
    .softmax = softmax<T>,
};

}  // namespace

FASTDET_LOOPS(SoftmaxLoops<float>) { return kLoops<float>; }
FASTDET_LOOPS(SoftmaxLoops<double>) { return kLoops<double>; }
FASTDET_LOOPS(SoftmaxLoops<Half>) { return kLoops<Half>; }
FASTDET_LOOPS(SoftmaxLoops<BFloat16>) { return kLoops<BFloat16>; }

}  // namespace fastdet::cpu::FASTDET_ISA
