// SPDX-License-Identifier: BSD-3-Clause
// The hot loops of every CPU kernel as tables of functions, one table per ISA and element type.
// A loop called x lives in x.loops.h; loops.cpp is compiled once per ISA and fills the tables;
// isa.cpp picks one. Plain C++ over pointers and ranges: no torch, no threads, no allocation, so
// that the NumPy entry points run the same code as the torch ops.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>

#include "../box_iou.h"

namespace fastdet::cpu {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// n boxes, one array a coordinate, so that a loop over boxes fills whole vectors.
template <typename T>
struct BoxPlanes {
  T *x1, *y1, *x2, *y2, *area;
};

// The same, read only, with the angle of the diagonal where a kind of IoU wants it.
template <typename T>
struct IouPlanes {
  const T *x1, *y1, *x2, *y2, *area, *angle;
};

// Loops over boxes; T is float or double.
template <typename T>
struct BoxLoops {
  // Whether `box` overlaps one of kept[0, n) by an IoU above the threshold.
  bool (*overlaps_any)(const BoxPlanes<T>& kept, int64_t n, const Box<T>& box, T box_area,
                       T iou_threshold);

  // out[j] = the IoU of `box` and others[j], j in [0, n).
  void (*box_iou_row)(IouKind kind, const IouBox<T>& box, const IouPlanes<T>& others, int64_t n,
                      const IouEps<T>& eps, T* out);

  // The sum over j of grad[j] times the derivative of that IoU by `box`.
  Box<T> (*box_iou_backward_row)(IouKind kind, const IouBox<T>& box, const IouPlanes<T>& others,
                                 int64_t n, const IouEps<T>& eps, const T* grad);

  // sum[j] += grad[j] times its derivative by others[j].
  void (*box_iou_backward_columns)(IouKind kind, const IouBox<T>& box, const IouPlanes<T>& others,
                                   int64_t n, const IouEps<T>& eps, const T* grad,
                                   const BoxPlanes<T>& sum);
};

// Loops over features and logits; T is float, double, Half or BFloat16, sums are float or double.
template <typename T>
struct FeatureLoops {};

#define FASTDET_DECLARE_ISA(name)         \
  namespace name {                        \
  template <typename T>                   \
  const BoxLoops<T>& box_loops();         \
  template <typename T>                   \
  const FeatureLoops<T>& feature_loops(); \
  }

FASTDET_DECLARE_ISA(baseline)
FASTDET_DECLARE_ISA(avx2)
FASTDET_DECLARE_ISA(avx512)
#undef FASTDET_DECLARE_ISA

// The tables of the current ISA.
template <typename T>
const BoxLoops<T>& box_loops();
template <typename T>
const FeatureLoops<T>& feature_loops();

}  // namespace fastdet::cpu
