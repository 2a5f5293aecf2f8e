// SPDX-License-Identifier: BSD-3-Clause
// Boxes in the form of the IoU loops: arrays of x1, y1, x2, y2, area and angle, `total` values
// each.
#pragma once

#include "box_iou.loops.h"

namespace fastdet::cpu {

constexpr int64_t kIouPlanes = 6;
constexpr int64_t kIouTileColumns = 1024;  // a tile stays in the L1 cache for all rows

template <typename T>
IouBox<T> iou_box(IouKind kind, const Box<T>& box) {
  return dispatch_kind(kind, [&]<IouKind k>() { return fastdet::iou_box<k>(box); });
}

// Fills columns [begin, end) of `planes` (6, total).
template <typename T>
void load_iou_planes(IouKind kind, const Box<T>* boxes, int64_t begin, int64_t end, T* planes,
                     int64_t total) {
  for (int64_t j = begin; j < end; ++j) {
    const IouBox<T> b = iou_box(kind, boxes[j]);
    const T values[kIouPlanes] = {b.box.x1, b.box.y1, b.box.x2, b.box.y2, b.area, b.angle};
    for (int64_t p = 0; p < kIouPlanes; ++p) planes[p * total + j] = values[p];
  }
}

// The planes (6, total) from column j on.
template <typename T>
IouPlanes<T> iou_planes_from(const T* planes, int64_t total, int64_t j) {
  const T* p = planes + j;
  return {p, p + total, p + 2 * total, p + 3 * total, p + 4 * total, p + 5 * total};
}

}  // namespace fastdet::cpu
