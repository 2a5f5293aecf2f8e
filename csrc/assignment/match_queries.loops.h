// SPDX-License-Identifier: BSD-3-Clause
// The loops of query matching, over the queries of one image and layer.
#pragma once

#include <cstdint>

#include "../isa/loops.h"
#include "query_cost.h"

namespace fastdet::cpu {

// The queries' boxes, one array for each number.
struct QueryPlanes {
  double *x, *y, *width, *height, *x1, *y1, *x2, *y2, *area;
};

// S is float or double.
template <typename S>
struct FASTDET_EXPORT QueryLoops {
  // Replaces n logits by their focal class costs.
  void (*focal_costs)(S* logits, int64_t n, S alpha, S gamma);

  // Fills the planes from n boxes.
  void (*load_queries)(const CentredBox<S>* boxes, int64_t n, const QueryPlanes& planes);

  // The costs of n queries for one gt. Returns whether all are finite.
  bool (*costs_of_gt)(const QueryPlanes& queries, const CentredBox<S>& gt, const S* class_costs,
                      int64_t n, const QueryWeights& weights, double* cost);
};

}  // namespace fastdet::cpu
