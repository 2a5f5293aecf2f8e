// SPDX-License-Identifier: BSD-3-Clause
// The IoU loss of row i of one argument with row i of the other, and its derivative.
#include "box_iou_loss.loops.h"

namespace fastdet::cpu::FASTDET_ISA {

namespace {

template <typename T>
void box_iou_loss(IouKind kind, const Box<T>* boxes1, const Box<T>* boxes2, int64_t n,
                  const IouEps<T>& eps, T* __restrict__ out) {
  dispatch_kind(kind, [&]<IouKind k>() __attribute__((always_inline)) {
    const IouEps<T> e = eps;
    for (int64_t i = 0; i < n; ++i)
      out[i] = 1 - similarity<k>(iou_box<k>(boxes1[i]), iou_box<k>(boxes2[i]), e);
  });
}

template <typename T>
void box_iou_loss_backward(IouKind kind, const Box<T>* boxes1, const Box<T>* boxes2, int64_t n,
                           const IouEps<T>& eps, const T* __restrict__ grad,
                           Box<T>* __restrict__ grad1, Box<T>* __restrict__ grad2) {
  dispatch_kind(kind, [&]<IouKind k>() __attribute__((always_inline)) {
    const IouEps<T> e = eps;
    FASTDET_INDEPENDENT_ITERATIONS
    for (int64_t i = 0; i < n; ++i) {
      // Fields, not structs, are copied through memory: GCC does not vectorise a loop that copies
      // structs.
      const Box<T> b1 = {boxes1[i].x1, boxes1[i].y1, boxes1[i].x2, boxes1[i].y2};
      const Box<T> b2 = {boxes2[i].x1, boxes2[i].y1, boxes2[i].x2, boxes2[i].y2};
      Box<T> d1, d2;
      similarity_backward<k>(iou_box<k>(b1), iou_box<k>(b2), e, -grad[i], d1, d2);
      grad1[i].x1 = d1.x1;
      grad1[i].y1 = d1.y1;
      grad1[i].x2 = d1.x2;
      grad1[i].y2 = d1.y2;
      grad2[i].x1 = d2.x1;
      grad2[i].y1 = d2.y1;
      grad2[i].x2 = d2.x2;
      grad2[i].y2 = d2.y2;
    }
  });
}

template <typename T>
constexpr BoxIouLossLoops<T> kLoops = {
    .box_iou_loss = box_iou_loss<T>,
    .box_iou_loss_backward = box_iou_loss_backward<T>,
};

}  // namespace

FASTDET_LOOPS(BoxIouLossLoops<float>) { return kLoops<float>; }
FASTDET_LOOPS(BoxIouLossLoops<double>) { return kLoops<double>; }

}  // namespace fastdet::cpu::FASTDET_ISA
