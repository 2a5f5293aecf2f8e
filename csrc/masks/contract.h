// SPDX-License-Identifier: BSD-3-Clause
// The arguments that the mask operators accept.
#pragma once

#include <algorithm>
#include <string>

#include "../expect.h"

namespace fastdet {

inline void check_matched_masks(const char* op, const Argument& masks, const Argument& boxes,
                                const Argument& match) {
  expect((masks.scalar_type() == kBool || masks.scalar_type() == ScalarType::Byte) &&
             masks.dim() == 4 && masks.size(2) > 0 && masks.size(3) > 0,
         op, "masks", "bool or uint8 (B, G, H, W) with H and W above 0", masks);
  expect(is_boxes(boxes, 3) && boxes.size(0) == masks.size(0), op, "boxes",
         "floating (B, K, 4) with the B of masks", boxes);
  expect(match.scalar_type() == kInt64 && match.dim() == 2 && match.size(0) == boxes.size(0) &&
             match.size(1) == boxes.size(1),
         op, "match", "int64 (B, K) with the B and K of boxes", match);
  expect_same_device(op, "boxes", boxes, masks);
  expect_same_device(op, "match", match, masks);
}

inline void check_crop_masks(const char* op, const Argument& masks, const Argument& boxes,
                             const Argument& match, int64_t height, int64_t width) {
  check_matched_masks(op, masks, boxes, match);
  if (height < 1 || width < 1)
    refuse(op, "output_size", "numbers above 0", std::to_string(std::min(height, width)));
}

inline void check_mask_rcnn_loss(const char* op, const Argument& logits, const Argument& labels,
                                 const Argument& masks, const Argument& boxes,
                                 const Argument& match) {
  expect(is_floating(logits) && logits.dim() == 5 && logits.size(3) > 0 && logits.size(4) > 0, op,
         "logits", "floating (B, K, C, h, w) with h and w above 0", logits);
  check_matched_masks(op, masks, boxes, match);
  expect(boxes.size(0) == logits.size(0) && boxes.size(1) == logits.size(1), op, "boxes",
         "floating (B, K, 4) with the B and K of logits", boxes);
  expect(labels.scalar_type() == kInt64 && same_shape(labels, match), op, "labels",
         "int64 (B, K) with the B and K of logits", labels);
  expect_same_device(op, "labels", labels, logits);
  expect_same_device(op, "masks", masks, logits);
}

inline void check_mask_rcnn_loss_backward(const char* op, const Argument& grad,
                                          const Argument& residual, const Argument& labels,
                                          const Argument& count, int64_t channels) {
  expect(
      is_floating(residual) && residual.dim() == 4 && residual.size(2) > 0 && residual.size(3) > 0,
      op, "residual", "floating (B, K, h, w) with h and w above 0", residual);
  expect(grad.scalar_type() == box_dtype(residual.scalar_type()) && grad.numel() == 1, op, "grad",
         "one number of the dtype of the loss", grad);
  expect(labels.scalar_type() == kInt64 && labels.dim() == 2 &&
             labels.size(0) == residual.size(0) && labels.size(1) == residual.size(1),
         op, "labels", "int64 (B, K) with the B and K of residual", labels);
  expect(count.scalar_type() == kInt64 && count.numel() == 1, op, "count", "one int64", count);
  expect_not_negative(op, "channels", channels);
  expect_same_device(op, "residual", residual, grad);
  expect_same_device(op, "labels", labels, grad);
  expect_same_device(op, "count", count, grad);
}

constexpr int64_t kLargestMask = int64_t(1) << 20;  // the taps are still distinct in float32

inline void check_paste_masks(const char* op, const Argument& masks, const Argument& boxes,
                              int64_t height, int64_t width) {
  const auto fits = [](int64_t size) { return size > 0 && size <= kLargestMask; };
  expect(is_floating(masks) && masks.dim() == 3 && fits(masks.size(1)) && fits(masks.size(2)), op,
         "masks", "floating (N, h, w) with h and w in [1, 2**20]", masks);
  expect(is_boxes(boxes, 2) && boxes.size(0) == masks.size(0), op, "boxes",
         "floating (N, 4) with the N of masks", boxes);
  expect_same_device(op, "boxes", boxes, masks);
  for (const int64_t size : {height, width})
    if (size < 0 || size >= int64_t(1) << 30)
      refuse(op, "size", "numbers in [0, 2**30)", std::to_string(size));
}

inline void check_mask_edges(const char* op, const Argument& masks) {
  expect(masks.scalar_type() == kBool && masks.dim() == 3, op, "masks", "bool (N, H, W)", masks);
}

}  // namespace fastdet
