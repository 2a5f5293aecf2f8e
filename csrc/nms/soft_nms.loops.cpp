// SPDX-License-Identifier: BSD-3-Clause
// Lowers the scores by the overlap with a picked box. The score of a box that is left is >= +0, and
// the bits of such numbers have the order of integers, so the maximum needs no floating-point
// comparison.
#include "soft_nms.loops.h"

#include "../geometry/maths.h"
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
    const T area_a = picked_area, score_threshold = rule.score_threshold;
    Bits most = __builtin_bit_cast(Bits, T(-1));
    for (int64_t i = 0; i < n; ++i) {
      const Box<T> other = {b.x1[i], b.y1[i], b.x2[i], b.y2[i]};
      const T decayed = scores[i] * weight(iou(a, area_a, other, b.area[i]));
      const T left = scores[i] >= T(0) && decayed >= score_threshold ? decayed : T(-1);
      scores[i] = left;
      const Bits bits = __builtin_bit_cast(Bits, left);
      most = bits > most ? bits : most;
    }
    return __builtin_bit_cast(T, most);
  };
  if (rule.method == SoftNmsMethod::kGaussian) {
    const T sigma = rule.sigma;
    return decay([=](T overlap) __attribute__((always_inline)) {
      return exp_of(-(overlap * overlap) / sigma);
    });
  }
  const T threshold = rule.iou_threshold;
  return decay([=](T overlap) __attribute__((always_inline)) {
    return overlap >= threshold ? T(1) - overlap : T(1);
  });
}

template <typename T>
constexpr SoftNmsLoops<T> kLoops = {
    .decay_scores = decay_scores<T>,
};

}  // namespace

FASTDET_LOOPS(SoftNmsLoops<float>) { return kLoops<float>; }
FASTDET_LOOPS(SoftNmsLoops<double>) { return kLoops<double>; }

}  // namespace fastdet::cpu::FASTDET_ISA
