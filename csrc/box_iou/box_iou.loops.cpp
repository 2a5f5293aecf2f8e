// SPDX-License-Identifier: BSD-3-Clause
// The IoU of one box with a row of n other boxes, and its derivative. The other boxes come as one
// array for each coordinate.
#include "box_iou.loops.h"

namespace fastdet::cpu::FASTDET_ISA {

namespace {

template <typename T>
IouBox<T> iou_box_at(const IouPlanes<T>& planes, int64_t j) {
  return {
      {planes.x1[j], planes.y1[j], planes.x2[j], planes.y2[j]}, planes.area[j], planes.angle[j]};
}

// The plain kind calls iou(), so that it has the same bits as in NMS.
template <typename T>
void box_iou_row(IouKind kind, const IouBox<T>& box, const IouPlanes<T>& others, int64_t n,
                 const IouEps<T>& eps, T* __restrict__ out) {
  dispatch_kind(kind, [&]<IouKind k>() __attribute__((always_inline)) {
    const IouBox<T> a = box;
    const IouEps<T> e = eps;
    for (int64_t j = 0; j < n; ++j) {
      const IouBox<T> b = iou_box_at(others, j);
      if constexpr (k == IouKind::kIou)
        out[j] = iou(a.box, a.area, b.box, b.area);
      else
        out[j] = similarity<k>(a, b, e);
    }
  });
}

// Adds the derivative with respect to each of the others to its place in `sum`.
template <typename T>
void box_iou_backward_columns(IouKind kind, const IouBox<T>& box, const IouPlanes<T>& others,
                              int64_t n, const IouEps<T>& eps, const T* __restrict__ grad,
                              const BoxPlanes<T>& sum) {
  dispatch_kind(kind, [&]<IouKind k>() __attribute__((always_inline)) {
    const IouBox<T> a = box;
    const IouEps<T> e = eps;
    const IouPlanes<T> b = others;
    const BoxPlanes<T> s = sum;
    // The planes do not overlap. Without this the compiler would compare too many pairs of
    // pointers.
    FASTDET_INDEPENDENT_ITERATIONS
    for (int64_t j = 0; j < n; ++j) {
      Box<T> da, db;
      similarity_backward<k>(a, iou_box_at(b, j), e, grad[j], da, db);
      s.x1[j] += db.x1;
      s.y1[j] += db.y1;
      s.x2[j] += db.x2;
      s.y2[j] += db.y2;
    }
  });
}

// The derivative with respect to `box`, summed in kIouLanes lanes on every ISA.
constexpr int kIouLanes = 16;

template <typename T>
Box<T> box_iou_backward_row(IouKind kind, const IouBox<T>& box, const IouPlanes<T>& others,
                            int64_t n, const IouEps<T>& eps, const T* __restrict__ grad) {
  T x1[kIouLanes] = {}, y1[kIouLanes] = {}, x2[kIouLanes] = {}, y2[kIouLanes] = {};
  dispatch_kind(kind, [&]<IouKind k>() __attribute__((always_inline)) {
    const IouBox<T> a = box;
    const IouEps<T> e = eps;
    const auto add = [&](int64_t j, int lane) __attribute__((always_inline)) {
      Box<T> da, db;
      similarity_backward<k>(a, iou_box_at(others, j), e, grad[j], da, db);
      x1[lane] += da.x1;
      y1[lane] += da.y1;
      x2[lane] += da.x2;
      y2[lane] += da.y2;
    };
    int64_t j = 0;
    for (; j + kIouLanes <= n; j += kIouLanes)
      for (int lane = 0; lane < kIouLanes; ++lane) add(j + lane, lane);
    for (int lane = 0; j < n; ++j, ++lane) add(j, lane);
  });
  Box<T> sum = {0, 0, 0, 0};
  for (int lane = 0; lane < kIouLanes; ++lane)
    sum = {sum.x1 + x1[lane], sum.y1 + y1[lane], sum.x2 + x2[lane], sum.y2 + y2[lane]};
  return sum;
}

template <typename T>
constexpr BoxIouLoops<T> kLoops = {
    .box_iou_row = box_iou_row<T>,
    .box_iou_backward_row = box_iou_backward_row<T>,
    .box_iou_backward_columns = box_iou_backward_columns<T>,
};

}  // namespace

FASTDET_LOOPS(BoxIouLoops<float>) { return kLoops<float>; }
FASTDET_LOOPS(BoxIouLoops<double>) { return kLoops<double>; }

}  // namespace fastdet::cpu::FASTDET_ISA
