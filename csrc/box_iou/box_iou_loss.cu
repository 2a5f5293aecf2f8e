// SPDX-License-Identifier: BSD-3-Clause
// The IoU losses of two lists of boxes, row by row: 1 - similarity (geometry/box_iou.h), and their
// gradient with respect to both arguments. One pass each, with one thread for each row, which loads
// and stores boxes and gradients as vectors. A row takes 36 bytes forward and 68 backward, and
// under 200 instructions. 100k rows take 1 and 2 us, so the single launch is what matters.
#include "../device/packs.cuh"
#include "../tensors/repeated_grad.h"
#include "contract.h"

namespace fastdet::cuda {

namespace {

template <IouKind kind, typename T>
void forward(int64_t n, const Box<T>* boxes1, const Box<T>* boxes2, const IouEps<T>& eps, T* loss,
             cudaStream_t stream) {
  for_each(n, stream, [=] __device__(int64_t i) {
    loss[i] = 1 - similarity<kind>(iou_box<kind>(load_box(boxes1 + i)),
                                   iou_box<kind>(load_box(boxes2 + i)), eps);
  });
}

template <IouKind kind, typename T>
void backward(int64_t n, const T* grad, int64_t repeat, const Box<T>* boxes1, const Box<T>* boxes2,
              const IouEps<T>& eps, Box<T>* grad1, Box<T>* grad2, cudaStream_t stream) {
  for_each(n, stream, [=] __device__(int64_t i) {
    Box<T> d1, d2;
    similarity_backward<kind>(iou_box<kind>(load_box(boxes1 + i)),
                              iou_box<kind>(load_box(boxes2 + i)), eps,
                              -grad[repeat == 1 ? i : i / repeat], d1, d2);
    store_box(grad1 + i, d1);
    store_box(grad2 + i, d2);
  });
}

}  // namespace

Tensor box_iou_loss(const Tensor& boxes1, const Tensor& boxes2, double eps,
                    const std::string& kind_name) {
  const char* const op = "box_iou_loss";
  check_box_iou_loss(op, boxes1, boxes2);
  const IouKind kind = iou_kind(op, kind_name);
  const DeviceGuard guard(boxes1.get_device_index());
  const auto dtype = box_dtype(boxes1, boxes2);
  const Tensor in1 = aligned(box_input(boxes1, dtype)), in2 = aligned(box_input(boxes2, dtype));
  const Tensor out = empty_rows(boxes1, dtype);
  dispatch_box(dtype, [&]<typename T>() {
    dispatch_kind(kind, [&]<IouKind k>() {
      forward<k>(out.numel(), data<Box<T>>(in1), data<Box<T>>(in2), loss_eps<T>(kind, eps),
                 mutable_data<T>(out), current_stream(boxes1));
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
  const DeviceGuard guard(boxes1.get_device_index());
  const auto dtype = box_dtype(boxes1, boxes2);
  const Tensor in1 = aligned(box_input(boxes1, dtype)), in2 = aligned(box_input(boxes2, dtype));
  const RepeatedGrad repeated = repeated_grad(grad);
  const Tensor grad1 = empty_like(boxes1, dtype), grad2 = empty_like(boxes2, dtype);
  dispatch_box(dtype, [&]<typename T>() {
    dispatch_kind(kind, [&]<IouKind k>() {
      backward<k>(grad.numel(), data<T>(repeated.compact), repeated.repeat, data<Box<T>>(in1),
                  data<Box<T>>(in2), loss_eps<T>(kind, eps), mutable_data<Box<T>>(grad1),
                  mutable_data<Box<T>>(grad2), current_stream(boxes1));
    });
  });
  return {cast(grad1, boxes1.scalar_type()), cast(grad2, boxes2.scalar_type())};
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CUDA, m) {
  m.impl("box_iou_loss", TORCH_BOX(&box_iou_loss));
  m.impl("box_iou_loss_backward", TORCH_BOX(&box_iou_loss_backward));
}

}  // namespace fastdet::cuda
