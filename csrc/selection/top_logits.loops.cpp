// SPDX-License-Identifier: BSD-3-Clause
// The logits above a bound, in order.
#include "top_logits.loops.h"

namespace fastdet::cpu::FASTDET_ISA {

namespace {

// A few cache lines. Most blocks have no logit above the bound and cost only a vector comparison.
constexpr int64_t kLogitBlock = 64;

template <typename T>
int64_t find_above(const T* logits, int64_t n, Sum<T> bound, int64_t first,
                   Sum<T>* __restrict__ values, int64_t* __restrict__ index) {
  int64_t found = 0, begin = 0;
  const auto compress = [&](int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto value = static_cast<Sum<T>>(logits[i]);
      values[found] = value;
      index[found] = first + i;
      found += value > bound;
    }
  };
  for (; begin + kLogitBlock <= n; begin += kLogitBlock) {
    int hits = 0;
    for (int64_t i = 0; i < kLogitBlock; ++i)
      hits |= static_cast<Sum<T>>(logits[begin + i]) > bound;
    if (hits) compress(begin + kLogitBlock);
  }
  compress(n);
  return found;
}

template <typename T>
constexpr TopLogitsLoops<T> kLoops = {
    .find_above = find_above<T>,
};

}  // namespace

FASTDET_LOOPS(TopLogitsLoops<float>) { return kLoops<float>; }
FASTDET_LOOPS(TopLogitsLoops<double>) { return kLoops<double>; }
FASTDET_LOOPS(TopLogitsLoops<Half>) { return kLoops<Half>; }
FASTDET_LOOPS(TopLogitsLoops<BFloat16>) { return kLoops<BFloat16>; }

}  // namespace fastdet::cpu::FASTDET_ISA
