// SPDX-License-Identifier: BSD-3-Clause
// The IoU of every pair of boxes, in four kinds (geometry/box_iou.h), and its gradient with respect
// to both arguments. O(N M) time. Beside inputs and outputs, O(N + M) memory, for the coordinates.
// Rows run in parallel, the pairs of a row in vectors. The gradient computes each pair twice, once
// for each argument, so that each sum is computed by one thread in a fixed order.
#include <algorithm>

#include "../host/huge_pages.h"
#include "../host/parallel.h"
#include "contract.h"
#include "iou_planes.h"

namespace fastdet::cpu {

namespace {

constexpr int64_t kGrainPairs = 1 << 14;

// Both arguments as (B, N, 4) and (B, M, 4); boxes2 also as one array of B * M for each coordinate.
template <typename T>
struct Pairs {
  IouKind kind;
  IouEps<T> eps;
  int64_t num_batches, n, m;
  Tensor boxes1, boxes2, planes;
  const Box<T>* rows;
  const T* columns;

  Pairs(IouKind kind, double eps_value, const Tensor& first, const Tensor& second, ScalarType dtype)
      : kind(kind),
        eps(pairwise_eps<T>(eps_value)),
        num_batches(first.dim() == 3 ? first.size(0) : 1),
        n(first.size(first.dim() - 2)),
        m(second.size(second.dim() - 2)),
        boxes1(box_input(first, dtype)),
        boxes2(box_input(second, dtype)),
        planes(empty(first, {kIouPlanes, num_batches * m}, dtype)),
        rows(data<Box<T>>(boxes1)),
        columns(data<T>(planes)) {
    const int64_t total = num_batches * m;
    T* p = mutable_data<T>(planes);
    const Box<T>* boxes = data<Box<T>>(boxes2);
    parallel_for(total, kGrainPairs, [&](int64_t begin, int64_t end) {
      load_iou_planes(kind, boxes, begin, end, p, total);
    });
  }

  IouPlanes<T> columns_from(int64_t j) const {
    return iou_planes_from(columns, num_batches * m, j);
  }
};

template <typename T>
void forward(const Pairs<T>& in, T* out) {
  const auto& loops = current_loops<BoxIouLoops<T>>();
  const int64_t grain = std::max<int64_t>(1, kGrainPairs / std::max<int64_t>(1, in.m));
  parallel_for(in.num_batches * in.n, grain, [&](int64_t begin, int64_t end) {
    for (int64_t j = 0; j < in.m; j += kIouTileColumns)
      for (int64_t row = begin; row < end; ++row)
        loops.box_iou_row(in.kind, iou_box(in.kind, in.rows[row]),
                          in.columns_from(row / in.n * in.m + j),
                          std::min(kIouTileColumns, in.m - j), in.eps, out + row * in.m + j);
  });
}

template <typename T>
void backward_rows(const Pairs<T>& in, const T* grad, Box<T>* grad1) {
  const auto& loops = current_loops<BoxIouLoops<T>>();
  const int64_t grain = std::max<int64_t>(1, kGrainPairs / std::max<int64_t>(1, in.m));
  parallel_for(in.num_batches * in.n, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      grad1[row] = loops.box_iou_backward_row(in.kind, iou_box(in.kind, in.rows[row]),
                                              in.columns_from(row / in.n * in.m), in.m, in.eps,
                                              grad + row * in.m);
  });
}

template <typename T>
void backward_columns(const Pairs<T>& in, const T* grad, Box<T>* grad2) {
  constexpr int64_t kColumns = 256;
  const auto& loops = current_loops<BoxIouLoops<T>>();
  // If there are few columns, tiles are narrow so that all threads have work. This changes no sum.
  const int64_t width = in.num_batches * in.m < 8 * kColumns ? 32 : kColumns;
  const int64_t num_tiles = (in.m + width - 1) / width;
  parallel_for(in.num_batches * num_tiles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t batch = tile / num_tiles, first = tile % num_tiles * width;
      const int64_t count = std::min(width, in.m - first);
      T sums[4][kColumns] = {};
      for (int64_t i = 0; i < in.n; ++i) {
        const int64_t row = batch * in.n + i;
        loops.box_iou_backward_columns(
            in.kind, iou_box(in.kind, in.rows[row]), in.columns_from(batch * in.m + first), count,
            in.eps, grad + row * in.m + first, {sums[0], sums[1], sums[2], sums[3], nullptr});
      }
      for (int64_t j = 0; j < count; ++j)
        grad2[batch * in.m + first + j] = {sums[0][j], sums[1][j], sums[2][j], sums[3][j]};
    }
  });
}

Tensor box_iou_of(const char* op, IouKind kind, const Tensor& boxes1, const Tensor& boxes2,
                  double eps) {
  check_box_iou(op, boxes1, boxes2);
  const auto dtype = box_dtype(boxes1, boxes2);
  return dispatch_box(dtype, [&]<typename T>() {
    const Pairs<T> in(kind, eps, boxes1, boxes2, dtype);
    const Tensor out =
        in_huge_pages(boxes1.dim() == 2 ? empty(boxes1, {in.n, in.m}, dtype)
                                        : empty(boxes1, {in.num_batches, in.n, in.m}, dtype));
    forward(in, mutable_data<T>(out));
    return out;
  });
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
                                            const std::string& kind) {
  const char* const op = "box_iou_backward";
  check_box_iou_backward(op, grad, boxes1, boxes2);
  const auto dtype = box_dtype(boxes1, boxes2);
  const Tensor grad_in = torch::stable::contiguous(grad);
  const Tensor grad1 = empty_like(boxes1, dtype), grad2 = empty_like(boxes2, dtype);
  dispatch_box(dtype, [&]<typename T>() {
    const Pairs<T> in(iou_kind(op, kind), eps, boxes1, boxes2, dtype);
    backward_rows(in, data<T>(grad_in), mutable_data<Box<T>>(grad1));
    backward_columns(in, data<T>(grad_in), mutable_data<Box<T>>(grad2));
  });
  return {cast(grad1, boxes1.scalar_type()), cast(grad2, boxes2.scalar_type())};
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) {
  m.impl("box_iou", TORCH_BOX(&box_iou));
  m.impl("generalized_box_iou", TORCH_BOX(&generalized_box_iou));
  m.impl("distance_box_iou", TORCH_BOX(&distance_box_iou));
  m.impl("complete_box_iou", TORCH_BOX(&complete_box_iou));
  m.impl("box_iou_backward", TORCH_BOX(&box_iou_backward));
}

}  // namespace fastdet::cpu
