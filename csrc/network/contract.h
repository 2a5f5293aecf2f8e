// SPDX-License-Identifier: BSD-3-Clause
// The arguments that the network layers accept.
#pragma once

#include <optional>
#include <string>

#include "../expect.h"
#include "winograd_filters.h"

namespace fastdet {

constexpr double kLargestScale = 1e30;
constexpr int64_t kLargestSide = int64_t(1) << 24;  // float32 holds all smaller integers

inline void check_upsample_nearest(const char* op, const Argument& input, int64_t height,
                                   int64_t width) {
  expect(input.is_cpu() && is_floating(input) && input.dim() == 4 && input.size(2) > 0 &&
             input.size(3) > 0,
         op, "input", "floating (B, C, H, W) with H and W above 0, on cpu", input);
  for (const int64_t size : {height, width})
    if (size < 1 || size > kLargestSide)
      refuse(op, "size", "numbers in [1, 2**24]", std::to_string(size));
}

inline bool is_winograd_dtype(const Argument& argument) {
  return argument.scalar_type() == kFloat32 || argument.scalar_type() == ScalarType::BFloat16;
}

inline void check_quantize_map(const char* op, const Argument& input, double scale,
                               int64_t zero_point) {
  const auto dtype = input.scalar_type();
  expect(input.is_cpu() && (dtype == kFloat32 || dtype == ScalarType::BFloat16), op, "input",
         "Float or BFloat16 on cpu", input);
  if (!(scale > 0 && scale < kLargestScale))
    refuse(op, "scale", "a number above 0", std::to_string(scale));
  if (zero_point < 0 || zero_point > 255)
    refuse(op, "zero_point", "a number in [0, 255]", std::to_string(zero_point));
}

inline void check_winograd_filters(const char* op, const Argument& weight,
                                   const std::optional<Argument>& scale) {
  expect(weight.is_cpu() && is_winograd_dtype(weight) && weight.dim() == 4 && weight.size(2) == 3 &&
             weight.size(3) == 3,
         op, "weight", "Float or BFloat16 (O, C, 3, 3) on cpu", weight);
  if (scale)
    expect(scale->is_cpu() && scale->scalar_type() == kFloat32 && scale->dim() == 1 &&
               scale->size(0) == weight.size(0),
           op, "scale", "Float (O,) on cpu", *scale);
}

inline void check_winograd_map(const char* op, const char* argument, const Argument& map) {
  expect(map.is_cpu() && map.scalar_type() == kFloat32 && map.dim() == 4, op, argument,
         "Float (B, C, H, W) on cpu", map);
}

// Whether a map has the B, H and W of the input.
inline void check_same_pixels(const char* op, const char* argument, const Argument& map,
                              const Argument& input) {
  expect(
      map.size(0) == input.size(0) && map.size(2) == input.size(2) && map.size(3) == input.size(3),
      op, argument, "the B, H and W of the input", map);
}

inline void check_winograd_conv(const char* op, const Argument& input, const Argument& filters,
                                const std::optional<Argument>& bias,
                                const std::optional<Argument>& summand, int64_t channels,
                                int64_t activation) {
  const ScalarType dtype = input.scalar_type();
  expect(input.is_cpu() && is_winograd_dtype(input) && input.dim() == 4, op, "input",
         "Float or BFloat16 (B, C, H, W) on cpu", input);
  expect(filters.is_cpu() && filters.scalar_type() == dtype && filters.dim() == 4 &&
             filters.size(0) == winograd_panels(channels) && filters.size(1) == input.size(1) &&
             filters.size(2) == kWinogradTaps && filters.size(3) == kWinogradPanel,
         op, "filters",
         "the result of winograd_filters for (channels, C, 3, 3) in the dtype of the input",
         filters);
  if (activation < 0 || activation > static_cast<int64_t>(Activation::kSilu))
    refuse(op, "activation", "0, 1 or 2", std::to_string(activation));
  if (bias)
    expect(bias->is_cpu() && bias->scalar_type() == kFloat32 && bias->dim() == 1 &&
               bias->size(0) == channels,
           op, "bias", "Float (channels,) on cpu", *bias);
  if (!summand) return;
  expect(summand->is_cpu() && summand->scalar_type() == dtype && summand->dim() == 4, op, "summand",
         "the dtype of the input, (B, C, H, W) on cpu", *summand);
  check_same_pixels(op, "summand", *summand, input);
  expect(summand->size(1) == channels, op, "summand", "the channels of the output", *summand);
}

inline void check_winograd_filters_grad(const char* op, const Argument& grad,
                                        const Argument& input) {
  check_winograd_map(op, "input", input);
  check_winograd_map(op, "grad", grad);
  check_same_pixels(op, "grad", grad, input);
}

}  // namespace fastdet
