// SPDX-License-Identifier: BSD-3-Clause
// The loops of SimOTA: over points and predictions in blocks of neighbours, over the classes of a
// prediction, and over predictions that are candidates of one ground-truth box (gt).
#pragma once

#include "dense_points.loops.h"
#include "predictions.h"
#include "simota_rule.h"

namespace fastdet::cpu {

template <typename S>
struct StridedPoints {
  PointPlanes<S> points;
  const S* strides;         // of the points
  const S* largest_stride;  // of each block
};

// The gts of an image as arrays, padded with gts that contain nothing.
template <typename S>
struct SimotaGts {
  BoxArrays<S> boxes;
  const S *x, *y;  // the centres
  int64_t padded;
};

// The predictions of an image in blocks. Those that are no candidates are boxes that touch nothing.
template <typename S>
struct BlockedBoxes {
  BoxArrays<S> boxes, hulls;
  int64_t num_blocks;
};

// S is float or double.
template <typename S>
struct FASTDET_EXPORT SimotaLoops {
  // The points of a block that are in a gt or near its centre, the first one lowest.
  uint64_t (*covered_points)(const StridedPoints<S>& points, int64_t block, const SimotaGts<S>& gts,
                             S radius);

  // Writes the points in the gt and near its centre, in order. Returns how many.
  int64_t (*centre_points)(const StridedPoints<S>& points, const SimotaGt<S>& gt, S radius,
                           int32_t* rows);

  // Writes the largest IoUs above 0, at most n, by falling value. Returns how many.
  int64_t (*largest_ious)(const BlockedBoxes<S>& in, const Box<S>& gt, int64_t n, S* largest);
};

// T is float, double, Half or BFloat16.
template <typename T>
struct FASTDET_EXPORT SimotaScoreLoops {
  using S = Sum<T>;

  // The sum of -log(1 - p) over n classes; NaN if a p is outside [0, 1].
  S (*sum_classes)(const T* scores, int64_t n);

  // The costs of n anchors for a gt. `sums` are the class sums of all anchors.
  void (*costs)(const Predictions<T>& in, const S* sums, const int32_t* anchors, int64_t n,
                const Box<S>& gt, int64_t label, const SimotaRule<S>& rule, S* cost);
};

}  // namespace fastdet::cpu
