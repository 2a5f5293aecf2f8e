// SPDX-License-Identifier: BSD-3-Clause
// The loops over the pairs of one box and a row of others.
#pragma once

#include <cstdint>

#include "../geometry/box_iou.h"
#include "../geometry/box_planes.h"
#include "../isa/loops.h"

namespace fastdet::cpu {

// Like BoxPlanes, but read-only, and with the angle of the diagonal if the kind of IoU needs it.
template <typename T>
struct IouPlanes {
  const T *x1, *y1, *x2, *y2, *area, *angle;
};

// T is float or double.
template <typename T>
struct FASTDET_EXPORT BoxIouLoops {
  // out[j] = the IoU of `box` and others[j], j in [0, n).
  void (*box_iou_row)(IouKind kind, const IouBox<T>& box, const IouPlanes<T>& others, int64_t n,
                      const IouEps<T>& eps, T* out);

  // The sum over j of grad[j] times the derivative of that IoU with respect to `box`.
  Box<T> (*box_iou_backward_row)(IouKind kind, const IouBox<T>& box, const IouPlanes<T>& others,
                                 int64_t n, const IouEps<T>& eps, const T* grad);

  // sum[j] += grad[j] times the derivative with respect to others[j].
  void (*box_iou_backward_columns)(IouKind kind, const IouBox<T>& box, const IouPlanes<T>& others,
                                   int64_t n, const IouEps<T>& eps, const T* grad,
                                   const BoxPlanes<T>& sum);
};

}  // namespace fastdet::cpu
