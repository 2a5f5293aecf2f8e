// SPDX-License-Identifier: BSD-3-Clause
// The arguments that the operators of deformable attention accept.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../expect.h"
#include "../geometry/pyramid.h"

namespace fastdet {

inline void check_attention_shapes(const char* op, const Argument& value,
                                   const std::vector<int64_t>& heights,
                                   const std::vector<int64_t>& widths) {
  const size_t levels = heights.size();
  if (levels < 1 || levels > kMaxLevels || widths.size() != levels)
    refuse(op, "shapes", "1 to " + std::to_string(kMaxLevels) + " levels", std::to_string(levels));
  const int64_t pixels = value.size(1);
  int64_t left = pixels;
  for (size_t l = 0; l < levels; ++l) {
    if (heights[l] < 1 || widths[l] < 1)
      refuse(op, "shapes", "heights and widths above 0",
             std::to_string(heights[l]) + " x " + std::to_string(widths[l]));
    // A product of such factors does not overflow.
    left = heights[l] > left || widths[l] > left ? -1 : left - heights[l] * widths[l];
    if (left < 0) break;
  }
  if (left != 0)
    refuse(op, "shapes", "levels of " + std::to_string(pixels) + " pixels together, the S of value",
           left < 0 ? "more" : std::to_string(pixels - left));
}

inline void check_ms_deform_attn(const char* op, const Argument& value,
                                 const std::vector<int64_t>& heights,
                                 const std::vector<int64_t>& widths, const Argument& locations,
                                 const Argument& weights) {
  // The kernels count pixels in 32 bits, also the missing ones around a level.
  expect(is_floating(value) && value.dim() == 4 && value.size(1) < int64_t(1) << 30, op, "value",
         "floating (B, S, H, D) with S below 2^30", value);
  check_attention_shapes(op, value, heights, widths);
  expect(is_floating(locations) && locations.dim() == 6 && locations.size(0) == value.size(0) &&
             locations.size(2) == value.size(2) &&
             locations.size(3) == static_cast<int64_t>(heights.size()) && locations.size(5) == 2,
         op, "locations", "floating (B, Q, H, L, P, 2) with the B and H of value and L shapes",
         locations);
  expect_same_device(op, "locations", locations, value);
  bool same = is_floating(weights) && weights.dim() == 5;
  for (int64_t d = 0; same && d < 5; ++d) same = weights.size(d) == locations.size(d);
  expect(same, op, "weights", "floating (B, Q, H, L, P), the shape of locations without its last",
         weights);
  expect_same_device(op, "weights", weights, value);
}

inline void check_ms_deform_attn_backward(const char* op, const Argument& grad,
                                          const Argument& value,
                                          const std::vector<int64_t>& heights,
                                          const std::vector<int64_t>& widths,
                                          const Argument& locations, const Argument& weights) {
  expect_same_device(op, "value", value, grad);
  check_ms_deform_attn(op, value, heights, widths, locations, weights);
  expect(grad.scalar_type() == value.scalar_type() && grad.dim() == 3 &&
             grad.size(0) == value.size(0) && grad.size(1) == locations.size(1) &&
             grad.size(2) == value.size(2) * value.size(3),
         op, "grad", "(B, Q, H * D) of the dtype of value", grad);
}

}  // namespace fastdet
