// SPDX-License-Identifier: BSD-3-Clause
// The arguments that the network layers accept.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <vector>

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

inline bool is_map_dtype(const Argument& argument) {
  return argument.scalar_type() == kFloat32 || argument.scalar_type() == ScalarType::BFloat16;
}

// Of max pooling: the numbers of rows and columns.
struct PoolGeometry {
  std::array<int64_t, 2> kernel, stride, padding;
};

constexpr int64_t kMostPlaces = 256;  // in a window, so that a byte holds each

inline std::array<int64_t, 2> checked_pair(const char* op, const char* argument,
                                           const std::vector<int64_t>& pair, int64_t least,
                                           const std::array<int64_t, 2>& most) {
  if (pair.size() != 2) refuse(op, argument, "two numbers", std::to_string(pair.size()));
  for (int i = 0; i < 2; ++i)
    if (pair[i] < least || pair[i] > most[i])
      refuse(op, argument,
             "numbers in [" + std::to_string(least) + ", " + std::to_string(most[i]) + "]",
             std::to_string(pair[i]));
  return {pair[0], pair[1]};
}

inline PoolGeometry checked_pool_geometry(const char* op, const std::vector<int64_t>& kernel,
                                          const std::vector<int64_t>& stride,
                                          const std::vector<int64_t>& padding) {
  const auto sides = checked_pair(op, "kernel", kernel, 1, {kMostPlaces, kMostPlaces});
  if (sides[0] * sides[1] > kMostPlaces)
    refuse(op, "kernel", "at most 256 places", std::to_string(sides[0] * sides[1]));
  return {sides, checked_pair(op, "stride", stride, 1, {kLargestSide, kLargestSide}),
          checked_pair(op, "padding", padding, 0, {sides[0] / 2, sides[1] / 2})};
}

// The number of windows along a side.
inline int64_t pooled_size(int64_t size, int64_t kernel, int64_t stride, int64_t padding) {
  return (size + 2 * padding - kernel) / stride + 1;
}

inline void check_max_pool2d(const char* op, const Argument& input, const PoolGeometry& geometry,
                             bool takes_bytes) {
  const bool is_byte = takes_bytes && input.scalar_type() == ScalarType::Byte;
  bool holds = input.is_cpu() && (is_map_dtype(input) || is_byte) && input.dim() == 4;
  for (int i = 0; holds && i < 2; ++i) {
    const int64_t size = input.size(2 + i);
    holds = size > 0 && size + 2 * geometry.padding[i] >= geometry.kernel[i];
  }
  expect(holds, op, "input",
         takes_bytes ? "Float, BFloat16 or Byte (B, C, H, W) on cpu, not smaller than the kernel"
                     : "Float or BFloat16 (B, C, H, W) on cpu, not smaller than the kernel",
         input);
}

inline void check_max_pool2d_backward(const char* op, const Argument& grad, const Argument& argmax,
                                      int64_t height, int64_t width, const PoolGeometry& geometry) {
  expect(grad.is_cpu() && is_map_dtype(grad) && grad.dim() == 4, op, "grad",
         "Float or BFloat16 (B, C, H, W) on cpu", grad);
  expect_same_device(op, "argmax", argmax, grad);
  expect(argmax.scalar_type() == ScalarType::Byte && same_shape(argmax, grad), op, "argmax",
         "Byte of the shape of grad", argmax);
  const std::array sizes = {height, width};
  for (int i = 0; i < 2; ++i) {
    const bool holds = sizes[i] > 0 && sizes[i] + 2 * geometry.padding[i] >= geometry.kernel[i] &&
                       grad.size(2 + i) == pooled_size(sizes[i], geometry.kernel[i],
                                                       geometry.stride[i], geometry.padding[i]);
    if (!holds) refuse(op, "size", "that of the pooled map", std::to_string(sizes[i]));
  }
}

// The numbers scale * (q - zero_point) for q in 0 .. 255.
struct Int8Grid {
  double scale;
  int64_t zero_point;
};

inline void check_grid(const char* op, const std::string& of, const Int8Grid& grid) {
  if (!(grid.scale > 0 && grid.scale < kLargestScale))
    refuse(op, (of + "scale").c_str(), "a number above 0", std::to_string(grid.scale));
  if (grid.zero_point < 0 || grid.zero_point > 255)
    refuse(op, (of + "zero_point").c_str(), "a number in [0, 255]",
           std::to_string(grid.zero_point));
}

inline void check_quantize_map(const char* op, const Argument& input, double scale,
                               int64_t zero_point) {
  expect(input.is_cpu() && is_map_dtype(input), op, "input", "Float or BFloat16 on cpu", input);
  check_grid(op, "", {scale, zero_point});
}

inline void check_winograd_filters(const char* op, const Argument& weight,
                                   const std::optional<Argument>& scale) {
  expect(weight.is_cpu() && is_map_dtype(weight) && weight.dim() == 4 && weight.size(2) == 3 &&
             weight.size(3) == 3,
         op, "weight", "Float or BFloat16 (O, C, 3, 3) on cpu", weight);
  if (scale)
    expect(scale->is_cpu() && scale->scalar_type() == kFloat32 && scale->dim() == 1 &&
               scale->size(0) == weight.size(0),
           op, "scale", "Float (O,) on cpu", *scale);
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
  expect(input.is_cpu() && is_map_dtype(input) && input.dim() == 4, op, "input",
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

constexpr int64_t kMostInt8Inputs = 1 << 15;  // more products may not fit into 32 bits

// What winograd_conv_int8 gives; in this order.
enum class Int8ResultType : int64_t { kByte, kFloat, kBFloat16 };

// What fastdet/ops/winograd_int8.py makes of a weight and of ranges. T is a tensor.
template <typename T>
struct Int8Filters {
  const T &roundings, &filters, &steps, &sums, &scales, &bias;
};

template <typename T>
void check_winograd_conv_int8(const char* op, const Argument& input, int64_t zero_point,
                              const Int8Filters<T>& of, const std::optional<Argument>& summand,
                              const Int8Grid& summand_grid, int64_t activation,
                              const Int8Grid& grid, int64_t result) {
  expect(input.is_cpu() && input.scalar_type() == ScalarType::Byte && input.dim() == 4 &&
             input.size(1) <= kMostInt8Inputs,
         op, "input", "Byte (B, C, H, W) on cpu, C up to 32768", input);
  const Argument filters = of.filters, scales = of.scales, bias = of.bias;
  expect(scales.is_cpu() && scales.scalar_type() == kFloat32 && scales.dim() == 1, op, "scales",
         "Float (channels,) on cpu", scales);
  const int64_t channels = scales.size(0), panels = winograd_panels(channels);
  expect(bias.is_cpu() && bias.scalar_type() == kFloat32 && bias.dim() == 1 &&
             bias.size(0) == channels,
         op, "bias", "Float (channels,) on cpu", bias);
  expect(filters.is_cpu() && filters.scalar_type() == ScalarType::Char && filters.dim() == 5 &&
             filters.size(0) == panels && filters.size(1) == kWinogradInt8Positions &&
             filters.size(2) == (input.size(1) + 3) / 4 && filters.size(3) == kWinogradPanel &&
             filters.size(4) == 4,
         op, "filters", "the result of winograd_filters_int8 for (channels, C, 3, 3)", filters);
  const Argument roundings = of.roundings;
  expect(roundings.is_cpu() && roundings.scalar_type() == ScalarType::Int && roundings.dim() == 2 &&
             roundings.size(0) == kWinogradInt8Positions && roundings.size(1) == 2,
         op, "roundings", "the result of winograd_roundings_int8", roundings);
  const auto check_table = [&](const char* name, const Argument& table, ScalarType dtype) {
    expect(table.is_cpu() && table.scalar_type() == dtype && table.dim() == 2 &&
               table.size(0) == kWinogradInt8Positions && table.size(1) == panels * kWinogradPanel,
           op, name, "the result of winograd_filters_int8 for (channels, C, 3, 3)", table);
  };
  check_table("steps", of.steps, kFloat32);
  check_table("sums", of.sums, ScalarType::Int);
  check_grid(op, "", {1, zero_point});
  if (activation < 0 || activation > static_cast<int64_t>(Activation::kRelu))
    refuse(op, "activation", "0 or 1", std::to_string(activation));
  if (result < 0 || result > static_cast<int64_t>(Int8ResultType::kBFloat16))
    refuse(op, "result", "0, 1 or 2", std::to_string(result));
  check_grid(op, "result_", grid);
  if (!summand) return;
  expect(summand->is_cpu() && summand->scalar_type() == ScalarType::Byte && summand->dim() == 4, op,
         "summand", "Byte (B, C, H, W) on cpu", *summand);
  check_same_pixels(op, "summand", *summand, input);
  expect(summand->size(1) == channels, op, "summand", "the channels of the output", *summand);
  check_grid(op, "summand_", summand_grid);
}

inline void check_winograd_filters_grad(const char* op, const Argument& grad,
                                        const Argument& input) {
  expect(input.is_cpu() && is_map_dtype(input) && input.dim() == 4, op, "input",
         "Float or BFloat16 (B, C, H, W) on cpu", input);
  expect(grad.is_cpu() && grad.scalar_type() == input.scalar_type() && grad.dim() == 4, op, "grad",
         "the dtype of the input, (B, K, H, W) on cpu", grad);
  check_same_pixels(op, "grad", grad, input);
}

}  // namespace fastdet
