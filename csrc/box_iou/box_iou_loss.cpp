// SPDX-License-Identifier: BSD-3-Clause
// The IoU losses of two lists of boxes, row by row: 1 - similarity (geometry/box_iou.h), and their
// gradient with respect to both arguments. One pass each, without a workspace.
#include "../host/grad_blocks.h"
#include "../host/parallel.h"
#include "box_iou_loss.loops.h"
#include "contract.h"

namespace fastdet::cpu {

namespace {

constexpr int64_t kGrainRows = 1 << 12;

}  // namespace

Tensor box_iou_loss(const Tensor& boxes1, const Tensor& boxes2, double eps,
                    const std::string& kind_name) {
  const char* const op = "box_iou_loss";
  check_box_iou_loss(op, boxes1, boxes2);
  const IouKind kind = iou_kind(op, kind_name);
  const auto dtype = box_dtype(boxes1, boxes2);
  const Tensor in1 = box_input(boxes1, dtype), in2 = box_input(boxes2, dtype);
  const Tensor out = empty_rows(boxes1, dtype);
  dispatch_box(dtype, [&]<typename T>() {
    const IouEps<T> e = loss_eps<T>(kind, eps);
    const Box<T>*a = data<Box<T>>(in1), *b = data<Box<T>>(in2);
    T* loss = mutable_data<T>(out);
    parallel_for(out.numel(), kGrainRows, [&](int64_t begin, int64_t end) {
      current_loops<BoxIouLossLoops<T>>().box_iou_loss(kind, a + begin, b + begin, end - begin, e,
                                                       loss + begin);
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> box_iou_loss_backward(const Tensor& grad, const Tensor& boxes1,
                                                 const Tensor& boxes2, double eps,
                                                 const std::string& kind_name) {
  const char* const op = "box_iou_loss_backward";
  check_box_iou_loss_backward(op, grad, boxes1, boxes2);
  const IouKind kind = iou_kind(op, kind_name);
  const auto dtype = box_dtype(boxes1, boxes2);
  const Tensor in1 = box_input(boxes1, dtype), in2 = box_input(boxes2, dtype);
  const RepeatedGrad repeated = repeated_grad(grad);
  const Tensor grad1 = empty_like(boxes1, dtype), grad2 = empty_like(boxes2, dtype);
  dispatch_box(dtype, [&]<typename T>() {
    const IouEps<T> e = loss_eps<T>(kind, eps);
    const Box<T>*a = data<Box<T>>(in1), *b = data<Box<T>>(in2);
    Box<T>*da = mutable_data<Box<T>>(grad1), *db = mutable_data<Box<T>>(grad2);
    parallel_for(grad.numel(), kGrainRows, [&](int64_t begin, int64_t end) {
      for_grad_blocks<T>(repeated, begin, end, [&](int64_t i, int64_t count, const T* g) {
        current_loops<BoxIouLossLoops<T>>().box_iou_loss_backward(kind, a + i, b + i, count, e, g,
                                                                  da + i, db + i);
      });
    });
  });
  return {cast(grad1, boxes1.scalar_type()), cast(grad2, boxes2.scalar_type())};
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) {
  m.impl("box_iou_loss", TORCH_BOX(&box_iou_loss));
  m.impl("box_iou_loss_backward", TORCH_BOX(&box_iou_loss_backward));
}

}  // namespace fastdet::cpu
