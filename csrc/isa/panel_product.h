// SPDX-License-Identifier: BSD-3-Clause
// The product of a matrix with a panel, a matrix of kPanel columns, in registers. Each element is a
// sum of products in the order of the depth, which is then added to what was there: of a long sum,
// given in parts, this rounds less than one sum through all parts. Only x.loops.cpp files include
// it.
#pragma once

#include "lanes.h"
#include "panel.h"

namespace fastdet::cpu::FASTDET_ISA {

// The number of rows of products in registers at a time, each with two vectors of columns.
#if defined(__AVX512F__)
constexpr int kProductRows = 12;
#else
constexpr int kProductRows = 6;
#endif
static_assert(kPanelRows % kProductRows == 0 && kPanel % (2 * kLanesOf<float>) == 0);

// For kRows rows and all columns of the panel.
template <int kRows, typename S>
__attribute__((always_inline)) inline void multiply_rows(const PanelFactor<S>& a, const S* panel,
                                                         int64_t panel_stride, int64_t depth,
                                                         bool add, S* out, int64_t out_stride) {
  constexpr int64_t kLanes = kLanesOf<S>;
  for (int64_t column = 0; column < kPanel; column += 2 * kLanes) {
    Lanes<S> sum[kRows][2];
    for (int i = 0; i < kRows; ++i) sum[i][0] = sum[i][1] = Lanes<S>{};
    const S *left = a.data, *right = panel + column;
    const int64_t row_stride = a.row_stride;
    for (int64_t k = 0; k < depth; ++k, left += a.depth_stride, right += panel_stride) {
      const Lanes<S> b0 = load_lanes(right), b1 = load_lanes(right + kLanes);
#pragma GCC unroll 12
      for (int i = 0; i < kRows; ++i) {
        const Lanes<S> x = all_lanes(left[i * row_stride]);
        sum[i][0] = multiply_add<S>(x, b0, sum[i][0]);
        sum[i][1] = multiply_add<S>(x, b1, sum[i][1]);
      }
    }
    for (int i = 0; i < kRows; ++i) {
      S* to = out + i * out_stride + column;
      store_lanes<S>(add ? load_lanes(to) + sum[i][0] : sum[i][0], to);
      store_lanes<S>(add ? load_lanes(to + kLanes) + sum[i][1] : sum[i][1], to + kLanes);
    }
  }
}

// out (rows, kPanel) = factor times panel (depth, kPanel), or += if `add`. The number of rows is a
// multiple of kPanelRows. Row k of the panel lies at panel + k * panel_stride.
template <typename S>
__attribute__((always_inline)) inline void multiply_panel(const PanelFactor<S>& a, int64_t rows,
                                                          const S* panel, int64_t panel_stride,
                                                          int64_t depth, bool add, S* out,
                                                          int64_t out_stride) {
  for (int64_t row = 0; row < rows; row += kProductRows)
    multiply_rows<kProductRows, S>({a.data + row * a.row_stride, a.row_stride, a.depth_stride},
                                   panel, panel_stride, depth, add, out + row * out_stride,
                                   out_stride);
}

}  // namespace fastdet::cpu::FASTDET_ISA
