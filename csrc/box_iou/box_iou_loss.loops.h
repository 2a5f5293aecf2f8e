// SPDX-License-Identifier: BSD-3-Clause
// The loops over pairs of boxes, row by row.
#pragma once

#include <cstdint>

#include "../geometry/box_iou.h"
#include "../isa/loops.h"

namespace fastdet::cpu {

// T is float or double.
template <typename T>
struct FASTDET_EXPORT BoxIouLossLoops {
  // out[i] = 1 - the IoU of boxes1[i] and boxes2[i], i in [0, n).
  void (*box_iou_loss)(IouKind kind, const Box<T>* boxes1, const Box<T>* boxes2, int64_t n,
                       const IouEps<T>& eps, T* out);

  // grad[i] times the derivative with respect to boxes1[i] and boxes2[i].
  void (*box_iou_loss_backward)(IouKind kind, const Box<T>* boxes1, const Box<T>* boxes2, int64_t n,
                                const IouEps<T>& eps, const T* grad, Box<T>* grad1, Box<T>* grad2);
};

}  // namespace fastdet::cpu
