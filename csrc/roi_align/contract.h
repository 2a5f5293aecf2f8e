// SPDX-License-Identifier: BSD-3-Clause
// The arguments that the RoIAlign operators accept.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "../expect.h"
#include "../geometry/pyramid.h"

namespace fastdet {

inline void check_features(const char* op, const char* argument, const Argument& features) {
  expect(
      is_floating(features) && features.dim() == 4 && features.size(2) > 0 && features.size(3) > 0,
      op, argument, "floating (B, C, H, W) with H and W above 0", features);
}

inline void check_rois(const char* op, const Argument& rois, const Argument& first) {
  expect(is_floating(rois) && rois.dim() == 2 && rois.size(1) == 5, op, "rois", "floating (K, 5)",
         rois);
  expect_same_device(op, "rois", rois, first);
}

inline void check_roi_align(const char* op, const Argument& input, const Argument& rois) {
  check_features(op, "input", input);
  check_rois(op, rois, input);
}

inline void check_roi_align_backward(const char* op, const Argument& grad, const Argument& rois,
                                     int64_t channels) {
  check_rois(op, rois, grad);
  expect(is_floating(grad) && grad.dim() == 4 && grad.size(0) == rois.size(0) &&
             grad.size(1) == channels,
         op, "grad", "floating (K, C, h, w) with the K of rois and the C of the input", grad);
}

inline void check_padded_boxes(const char* op, const Argument& boxes, int64_t num_images,
                               const std::optional<Argument>& counts, const Argument& first) {
  expect(is_boxes(boxes, 3) && boxes.size(0) == num_images, op, "boxes",
         "floating (B, K, 4) with the B of the features", boxes);
  expect_same_device(op, "boxes", boxes, first);
  if (!counts) return;
  expect(is_integers(*counts, boxes.size(0)), op, "counts", "int64 (B,) with the B of boxes",
         *counts);
  expect_same_device(op, "counts", *counts, first);
}

inline void check_levels(const char* op, size_t num_levels, size_t num_scales) {
  if (num_levels < 1 || num_levels > kMaxLevels)
    refuse(op, "features", "1 to " + std::to_string(kMaxLevels) + " levels",
           std::to_string(num_levels));
  if (num_scales != num_levels)
    refuse(op, "scales", "one for each level, " + std::to_string(num_levels),
           std::to_string(num_scales));
}

inline void check_multiscale_roi_align(const char* op, const std::vector<Argument>& features,
                                       const Argument& boxes, const std::optional<Argument>& counts,
                                       size_t num_scales) {
  check_levels(op, features.size(), num_scales);
  const Argument& first = features[0];
  for (const Argument& level : features) {
    check_features(op, "features", level);
    expect(level.scalar_type() == first.scalar_type() && level.size(0) == first.size(0) &&
               level.size(1) == first.size(1),
           op, "features", "the dtype, B and C of the first level", level);
    expect_same_device(op, "features", level, first);
  }
  check_padded_boxes(op, boxes, first.size(0), counts, first);
}

inline void check_multiscale_roi_align_backward(const char* op, const Argument& grad,
                                                const Argument& boxes,
                                                const std::optional<Argument>& counts,
                                                size_t num_heights, size_t num_widths,
                                                size_t num_scales) {
  check_levels(op, num_heights, num_scales);
  check_levels(op, num_widths, num_scales);
  check_padded_boxes(op, boxes, boxes.dim() > 0 ? boxes.size(0) : 0, counts, grad);
  expect(is_floating(grad) && grad.dim() == 5 && grad.size(0) == boxes.size(0) &&
             grad.size(1) == boxes.size(1),
         op, "grad", "floating (B, K, C, h, w) with the B and K of boxes", grad);
}

inline void check_multiscale_roi_align_add_grad(const char* op, const std::vector<Argument>& sums,
                                                const Argument& grad, const Argument& boxes,
                                                const std::optional<Argument>& counts,
                                                size_t num_scales) {
  check_multiscale_roi_align_backward(op, grad, boxes, counts, sums.size(), sums.size(),
                                      num_scales);
  for (const Argument& level : sums) {
    expect((level.scalar_type() == kFloat32 || level.scalar_type() == kFloat64) &&
               level.scalar_type() == grad.scalar_type() && level.dim() == 4 &&
               level.size(0) == grad.size(0) && level.size(1) == grad.size(2),
           op, "sums", "float32 or float64 (B, C, H, W) with the dtype, B and C of grad", level);
    expect_same_device(op, "sums", level, grad);
  }
}

}  // namespace fastdet
