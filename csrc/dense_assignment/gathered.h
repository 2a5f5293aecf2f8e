// SPDX-License-Identifier: BSD-3-Clause
// Predictions of chosen anchors, gathered as arrays so that arithmetic on them fills vectors. Only
// x.loops.cpp files include it.
#pragma once

#ifndef FASTDET_ISA
#error "gathered.h is for x.loops.cpp, which CMake compiles once for each ISA with FASTDET_ISA set"
#endif

#include "predictions.h"

namespace fastdet::cpu::FASTDET_ISA {

constexpr int64_t kGathered = 256;

template <typename S>
struct Gathered {
  S x1[kGathered], y1[kGathered], x2[kGathered], y2[kGathered], score[kGathered];

  __attribute__((always_inline)) Box<S> box(int64_t i) const {
    return {x1[i], y1[i], x2[i], y2[i]};
  }
};

// n <= kGathered anchors, with their scores for the label.
template <typename T>
__attribute__((always_inline)) inline void gather(const Predictions<T>& in, const int32_t* anchors,
                                                  int64_t n, int64_t label, Gathered<Sum<T>>& out) {
  const Predictions<T> from = in;
  // A score is alone in its cache line, which the processor does not foresee.
  for (int64_t i = 0; i < n; ++i)
    __builtin_prefetch(from.scores + anchors[i] * from.anchor_stride + label * from.class_stride);
  for (int64_t i = 0; i < n; ++i) {
    const Box<Sum<T>> box = from.boxes[anchors[i]];
    out.x1[i] = box.x1, out.y1[i] = box.y1, out.x2[i] = box.x2, out.y2[i] = box.y2;
  }
  for (int64_t i = 0; i < n; ++i) out.score[i] = from.score(anchors[i], label);
}

}  // namespace fastdet::cpu::FASTDET_ISA
