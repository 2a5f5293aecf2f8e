// SPDX-License-Identifier: BSD-3-Clause
// The IoU of every pair of boxes, in four kinds (see ../box_iou.h), and its derivative by both
// arguments. Forward: one thread a pair. Backward: one thread a box, which walks the other boxes in
// order, so that the sums are the same in each run; every pair is computed twice.
#include "../checks.h"
#include "launch.cuh"

namespace fastdet::cuda {

namespace {

// boxes1 (B, N, 4) and boxes2 (B, M, 4); without a batch B is 1.
struct PairSizes {
  int64_t num_batches, n, m;

  PairSizes(const Tensor& boxes1, const Tensor& boxes2)
      : num_batches(boxes1.dim() == 3 ? boxes1.size(0) : 1),
        n(boxes1.size(boxes1.dim() - 2)),
        m(boxes2.size(boxes2.dim() - 2)) {}
};

template <IouKind kind, typename T>
void forward(const PairSizes& sizes, const Box<T>* boxes1, const Box<T>* boxes2,
             const IouEps<T>& eps, T* out, cudaStream_t stream) {
  const int64_t n = sizes.n, m = sizes.m;
  for_each(sizes.num_batches * n * m, stream, [=] __device__(int64_t pair) {
    const int64_t row = pair / m;
    const auto a = iou_box<kind>(boxes1[row]), b = iou_box<kind>(boxes2[row / n * m + pair % m]);
    // The plain kind goes through iou(), so that it has the bits that NMS compares.
    out[pair] =
        kind == IouKind::kIou ? iou(a.box, a.area, b.box, b.area) : similarity<kind>(a, b, eps);
  });
}

template <typename T>
__device__ void add(Box<T>& sum, const Box<T>& d) {
  sum = {sum.x1 + d.x1, sum.y1 + d.y1, sum.x2 + d.x2, sum.y2 + d.y2};
}

template <IouKind kind, typename T>
void backward(const PairSizes& sizes, const T* grad, const Box<T>* boxes1, const Box<T>* boxes2,
              const IouEps<T>& eps, Box<T>* grad1, Box<T>* grad2, cudaStream_t stream) {
  const int64_t n = sizes.n, m = sizes.m;
  for_each(sizes.num_batches * n, stream, [=] __device__(int64_t row) {
    const auto a = iou_box<kind>(boxes1[row]);
    Box<T> sum = {0, 0, 0, 0}, d1, d2;
    for (int64_t j = 0; j < m; ++j) {
      const auto b = iou_box<kind>(boxes2[row / n * m + j]);
      similarity_backward<kind>(a, b, eps, grad[row * m + j], d1, d2);
      add(sum, d1);
    }
    grad1[row] = sum;
  });
  for_each(sizes.num_batches * m, stream, [=] __device__(int64_t column) {
    const auto b = iou_box<kind>(boxes2[column]);
    const int64_t first = column / m * n;
    Box<T> sum = {0, 0, 0, 0}, d1, d2;
    for (int64_t row = first; row < first + n; ++row) {
      similarity_backward<kind>(iou_box<kind>(boxes1[row]), b, eps, grad[row * m + column % m], d1,
                                d2);
      add(sum, d2);
    }
    grad2[column] = sum;
  });
}

Tensor box_iou_of(const char* op, IouKind kind, const Tensor& boxes1, const Tensor& boxes2,
                  double eps) {
  check_box_iou(op, boxes1, boxes2);
  const DeviceGuard guard(boxes1.get_device_index());
  const auto dtype = box_dtype(boxes1, boxes2);
  const PairSizes sizes(boxes1, boxes2);
  const Tensor in1 = box_input(boxes1, dtype), in2 = box_input(boxes2, dtype);
  const Tensor out = boxes1.dim() == 2
                         ? empty(boxes1, {sizes.n, sizes.m}, dtype)
                         : empty(boxes1, {sizes.num_batches, sizes.n, sizes.m}, dtype);
  dispatch_box(dtype, [&]<typename T>() {
    dispatch_kind(kind, [&]<IouKind k>() {
      forward<k>(sizes, data<Box<T>>(in1), data<Box<T>>(in2), pairwise_eps<T>(eps),
                 mutable_data<T>(out), current_stream(boxes1));
    });
  });
  return out;
}

}  // namespace

Tensor box_iou(const Tensor& boxes1, const Tensor& boxes2) {
  return box_iou_of("box_iou", IouKind::kIou, boxes1, boxes2, 0);
}

Tensor generalized_box_iou(const Tensor& boxes1, const Tensor& boxes2) {
  return box_iou_of("generalized_box_iou", IouKind::kGeneralized, boxes1, boxes2, 0);
}

Tensor distance_box_iou(const Tensor& boxes1, const Tensor& boxes2, double eps) {
  return box_iou_of("distance_box_iou", IouKind::kDistance, boxes1, boxes2, eps);
}

Tensor complete_box_iou(const Tensor& boxes1, const Tensor& boxes2, double eps) {
  return box_iou_of("complete_box_iou", IouKind::kComplete, boxes1, boxes2, eps);
}

std::tuple<Tensor, Tensor> box_iou_backward(const Tensor& grad, const Tensor& boxes1,
                                            const Tensor& boxes2, double eps,
                                            const std::string& kind_name) {
  const char* const op = "box_iou_backward";
  check_box_iou_backward(op, grad, boxes1, boxes2);
  const IouKind kind = iou_kind(op, kind_name);
  const DeviceGuard guard(boxes1.get_device_index());
  const auto dtype = box_dtype(boxes1, boxes2);
  const Tensor in1 = box_input(boxes1, dtype), in2 = box_input(boxes2, dtype);
  const Tensor grad_in = torch::stable::contiguous(grad);
  const Tensor grad1 = empty_like(boxes1, dtype), grad2 = empty_like(boxes2, dtype);
  dispatch_box(dtype, [&]<typename T>() {
    dispatch_kind(kind, [&]<IouKind k>() {
      backward<k>(PairSizes(boxes1, boxes2), data<T>(grad_in), data<Box<T>>(in1), data<Box<T>>(in2),
                  pairwise_eps<T>(eps), mutable_data<Box<T>>(grad1), mutable_data<Box<T>>(grad2),
                  current_stream(boxes1));
    });
  });
  return {cast(grad1, boxes1.scalar_type()), cast(grad2, boxes2.scalar_type())};
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CUDA, m) {
  m.impl("box_iou", TORCH_BOX(&box_iou));
  m.impl("generalized_box_iou", TORCH_BOX(&generalized_box_iou));
  m.impl("distance_box_iou", TORCH_BOX(&distance_box_iou));
  m.impl("complete_box_iou", TORCH_BOX(&complete_box_iou));
  m.impl("box_iou_backward", TORCH_BOX(&box_iou_backward));
}

}  // namespace fastdet::cuda
