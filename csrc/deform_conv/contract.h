// SPDX-License-Identifier: BSD-3-Clause
// The arguments that the operators of deformable convolution accept.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "../expect.h"
#include "conv_shape.h"

namespace fastdet {

constexpr int64_t kLargestStep = int64_t(1) << 20;  // of strides, paddings and dilations

inline void check_conv_pair(const char* op, const char* argument, const std::vector<int64_t>& pair,
                            int64_t least) {
  bool holds = pair.size() == 2;
  for (const int64_t number : pair) holds = holds && number >= least && number <= kLargestStep;
  if (holds) return;
  std::string actual;
  for (const int64_t number : pair) actual += (actual.empty() ? "" : ", ") + std::to_string(number);
  refuse(op, argument, "two numbers in [" + std::to_string(least) + ", 2**20]", "[" + actual + "]");
}

inline std::string pair_of(int64_t height, int64_t width, const char* between) {
  return std::to_string(height) + between + std::to_string(width);
}

// "floating (2, 18, 100, 152)" with the number of offset groups still open.
inline std::string conv_points(const DeformConvShape& shape, int64_t numbers) {
  return "floating (" + std::to_string(shape.images) + ", " +
         std::to_string(numbers * shape.taps()) + " * offset groups, " +
         pair_of(shape.out_height, shape.out_width, ", ") + ")";
}

inline bool is_conv_points(const DeformConvShape& shape, const Argument& points, int64_t numbers) {
  return is_floating(points) && points.dim() == 4 && points.size(0) == shape.images &&
         points.size(1) == numbers * shape.offset_groups * shape.taps() &&
         points.size(2) == shape.out_height && points.size(3) == shape.out_width;
}

// All sizes but offset_groups.
inline DeformConvShape check_conv_maps(const char* op, const Argument& input,
                                       const Argument& weight, const std::vector<int64_t>& stride,
                                       const std::vector<int64_t>& padding,
                                       const std::vector<int64_t>& dilation) {
  // The kernels count pixels in 32 bits, also the missing ones around a map.
  expect(is_floating(input) && input.dim() == 4 && input.size(1) > 0 &&
             input.size(2) < int64_t(1) << 29 && input.size(3) < int64_t(1) << 29 &&
             input.size(2) * input.size(3) < int64_t(1) << 29,
         op, "input", "floating (B, C, H, W) with C above 0 and H * W below 2^29", input);
  expect(is_floating(weight) && weight.dim() == 4 && weight.size(1) > 0 && weight.size(2) > 0 &&
             weight.size(3) > 0 && weight.size(2) <= kLargestStep &&
             weight.size(3) <= kLargestStep && input.size(1) % weight.size(1) == 0 &&
             weight.size(0) % (input.size(1) / weight.size(1)) == 0,
         op, "weight",
         ("floating (O, C / groups, kernel height, kernel width) with the C of input, " +
          std::to_string(input.size(1)) + ", and O multiples of groups")
             .c_str(),
         weight);
  expect_same_device(op, "weight", weight, input);
  check_conv_pair(op, "stride", stride, 1);
  check_conv_pair(op, "padding", padding, 0);
  check_conv_pair(op, "dilation", dilation, 1);
  const int64_t kernel_height = weight.size(2), kernel_width = weight.size(3);
  return {
      .images = input.size(0),
      .channels = input.size(1),
      .height = input.size(2),
      .width = input.size(3),
      .outputs = weight.size(0),
      .out_height =
          conv_positions(input.size(2), kernel_height, stride[0], padding[0], dilation[0]),
      .out_width = conv_positions(input.size(3), kernel_width, stride[1], padding[1], dilation[1]),
      .kernel_height = kernel_height,
      .kernel_width = kernel_width,
      .stride_y = stride[0],
      .stride_x = stride[1],
      .padding_y = padding[0],
      .padding_x = padding[1],
      .dilation_y = dilation[0],
      .dilation_x = dilation[1],
      .groups = input.size(1) / weight.size(1),
      .offset_groups = 0,
  };
}

inline DeformConvShape check_deform_conv2d(const char* op, const Argument& input,
                                           const Argument& offset, const Argument& weight,
                                           const std::optional<Argument>& bias,
                                           const std::optional<Argument>& mask,
                                           const std::vector<int64_t>& stride,
                                           const std::vector<int64_t>& padding,
                                           const std::vector<int64_t>& dilation) {
  expect_same_device(op, "offset", offset, input);
  DeformConvShape shape = check_conv_maps(op, input, weight, stride, padding, dilation);
  if (shape.out_height == 0 || shape.out_width == 0)
    refuse(op, "input",
           "a height and width, with the padding, of at least the extent of the kernel",
           pair_of(shape.height, shape.width, " x ") + " for a kernel of " +
               pair_of(shape.kernel_height, shape.kernel_width, " x "));
  if (offset.dim() == 4) shape.offset_groups = offset.size(1) / (2 * shape.taps());
  expect(shape.offset_groups > 0 && shape.channels % shape.offset_groups == 0 &&
             is_conv_points(shape, offset, 2),
         op, "offset",
         (conv_points(shape, 2) + " with the C of input, " + std::to_string(shape.channels) +
          ", a multiple of offset groups")
             .c_str(),
         offset);
  if (mask) {
    expect(is_conv_points(shape, *mask, 1), op, "mask",
           (conv_points(shape, 1) + " with " + std::to_string(shape.offset_groups) +
            " offset groups, as offset has")
               .c_str(),
           *mask);
    expect_same_device(op, "mask", *mask, input);
  }
  if (bias) {
    expect(is_floating(*bias) && bias->dim() == 1 && bias->size(0) == shape.outputs, op, "bias",
           ("floating (" + std::to_string(shape.outputs) + ",), the O of weight").c_str(), *bias);
    expect_same_device(op, "bias", *bias, input);
  }
  return shape;
}

inline DeformConvShape check_deform_conv2d_backward(
    const char* op, const Argument& grad, const Argument& input, const Argument& offset,
    const Argument& weight, const std::optional<Argument>& mask, const std::vector<int64_t>& stride,
    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation) {
  expect_same_device(op, "input", input, grad);
  const DeformConvShape shape =
      check_deform_conv2d(op, input, offset, weight, std::nullopt, mask, stride, padding, dilation);
  expect(grad.scalar_type() == input.scalar_type() && grad.dim() == 4 &&
             grad.size(0) == shape.images && grad.size(1) == shape.outputs &&
             grad.size(2) == shape.out_height && grad.size(3) == shape.out_width,
         op, "grad", "(B, O, output height, output width) of the dtype of input", grad);
  return shape;
}

}  // namespace fastdet
