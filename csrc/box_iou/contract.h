// SPDX-License-Identifier: BSD-3-Clause
// The arguments that the pairwise IoU operators and the IoU losses accept.
#pragma once

#include <string>

#include "../expect.h"
#include "../geometry/box_iou.h"

namespace fastdet {

inline void check_box_iou(const char* op, const Argument& boxes1, const Argument& boxes2) {
  expect(is_boxes(boxes1, 2) || is_boxes(boxes1, 3), op, "boxes1", "floating (N, 4) or (B, N, 4)",
         boxes1);
  expect(is_boxes(boxes2, boxes1.dim()) && (boxes1.dim() == 2 || boxes1.size(0) == boxes2.size(0)),
         op, "boxes2", "floating (M, 4), or (B, M, 4) with the B of boxes1", boxes2);
  expect_same_device(op, "boxes2", boxes2, boxes1);
}

inline void check_box_iou_backward(const char* op, const Argument& grad, const Argument& boxes1,
                                   const Argument& boxes2) {
  check_box_iou(op, boxes1, boxes2);
  const int64_t dim = boxes1.dim();
  expect(grad.scalar_type() == box_dtype(boxes1.scalar_type(), boxes2.scalar_type()) &&
             grad.dim() == dim && grad.size(dim - 2) == boxes1.size(dim - 2) &&
             grad.size(dim - 1) == boxes2.size(dim - 2) &&
             (dim == 2 || grad.size(0) == boxes1.size(0)),
         op, "grad", "one number for each pair, of the dtype of the IoU", grad);
  expect_same_device(op, "grad", grad, boxes1);
}

inline IouKind iou_kind(const char* op, const std::string& kind) {
  if (kind == "iou") return IouKind::kIou;
  if (kind == "generalized") return IouKind::kGeneralized;
  if (kind == "distance") return IouKind::kDistance;
  if (kind == "complete") return IouKind::kComplete;
  refuse(op, "kind", "iou, generalized, distance or complete", "'" + kind + "'");
}

inline void check_box_iou_loss(const char* op, const Argument& boxes1, const Argument& boxes2) {
  expect(boxes1.dim() > 0 && is_boxes(boxes1, boxes1.dim()), op, "boxes1", "floating (..., 4)",
         boxes1);
  expect(is_floating(boxes2) && same_shape(boxes2, boxes1), op, "boxes2",
         "floating, with the shape of boxes1", boxes2);
  expect_same_device(op, "boxes2", boxes2, boxes1);
}

inline void check_box_iou_loss_backward(const char* op, const Argument& grad,
                                        const Argument& boxes1, const Argument& boxes2) {
  check_box_iou_loss(op, boxes1, boxes2);
  bool fits = grad.dim() == boxes1.dim() - 1;
  for (int64_t d = 0; fits && d < grad.dim(); ++d) fits = grad.size(d) == boxes1.size(d);
  expect(fits && grad.scalar_type() == box_dtype(boxes1.scalar_type(), boxes2.scalar_type()), op,
         "grad", "one number for each row, of the dtype of the loss", grad);
  expect_same_device(op, "grad", grad, boxes1);
}

}  // namespace fastdet
