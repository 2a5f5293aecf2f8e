// SPDX-License-Identifier: BSD-3-Clause
// The sizes of isa/panel_product.h, for the code that lays out its matrices.
#pragma once

#include <cstdint>

namespace fastdet::cpu {

constexpr int64_t kPanel = 32;      // columns of a panel
constexpr int64_t kPanelRows = 12;  // rows of the other factor come in multiples of it

// Element (row, k) lies at row * row_stride + k * depth_stride.
template <typename S>
struct PanelFactor {
  const S* data;
  int64_t row_stride, depth_stride;
};

constexpr int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

}  // namespace fastdet::cpu
