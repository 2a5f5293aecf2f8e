// SPDX-License-Identifier: BSD-3-Clause
// Lowers the scores by the overlap with a picked box. The score of a box that is left is >= +0, and
// the bits of such numbers have the order of integers, so the maximum needs no floating-point
// comparison.
#include "soft_nms.loops.h"

#include "../isa/lane_int.h"

namespace fastdet::cpu::FASTDET_ISA {

namespace {

template <typename T>
T decay_scores(const SoftNmsRule<T>& rule, const Box<T>& picked, T picked_area,
               const BoxPlanes<T>& boxes, int64_t n, T* __restrict__ scores) {
  using Bits = LaneInt<T>;
  const auto decay = [&](const auto& weight) __attribute__((always_inline)) {
    const BoxPlanes<T> b = boxes;
    const Box<T> a = picked;
    const T area_a = picked_area;
    const SoftNmsRule<T> own = rule;
    Bits most = __builtin_bit_cast(Bits, T(-1));
    for (int64_t i = 0; i < n; ++i) {
      const Box<T> other = {b.x1[i], b.y1[i], b.x2[i], b.y2[i]};
      const T left = own.left(scores[i], weight(own, iou(a, area_a, other, b.area[i])));
      scores[i] = left;
      const Bits bits = __builtin_bit_cast(Bits, left);
      most = bits > most ? bits : most;
    }
    return __builtin_bit_cast(T, most);
  };
  using Rule = const SoftNmsRule<T>&;
  if (rule.method == SoftNmsMethod::kGaussian)
    return decay([](Rule own, T overlap)
                     __attribute__((always_inline)) { return own.gaussian_weight(overlap); });
  return decay([](Rule own, T overlap)
                   __attribute__((always_inline)) { return own.linear_weight(overlap); });
}

template <typename T>
constexpr SoftNmsLoops<T> kLoops = {
    .decay_scores = decay_scores<T>,
};

}  // namespace

FASTDET_LOOPS(SoftNmsLoops<float>) { return kLoops<float>; }
FASTDET_LOOPS(SoftNmsLoops<double>) { return kLoops<double>; }

}  // namespace fastdet::cpu::FASTDET_ISA
