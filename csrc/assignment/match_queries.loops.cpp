// SPDX-License-Identifier: BSD-3-Clause
// The costs of queries in plain loops, which the compiler vectorises. A pair takes about 40
// operations in double, two of them divisions; a class cost about 50 in S.
#include "match_queries.loops.h"

namespace fastdet::cpu::FASTDET_ISA {

namespace {

template <bool kSquare, typename S>
void focal_costs_of(S* logits, int64_t n, S alpha, S gamma) {
  for (int64_t i = 0; i < n; ++i) logits[i] = focal_class_cost<kSquare>(logits[i], alpha, gamma);
}

template <typename S>
void focal_costs(S* logits, int64_t n, S alpha, S gamma) {
  if (gamma == S(2))
    focal_costs_of<true>(logits, n, alpha, gamma);
  else
    focal_costs_of<false>(logits, n, alpha, gamma);
}

template <typename S>
void load_queries(const CentredBox<S>* boxes, int64_t n, const QueryPlanes& planes) {
  const QueryPlanes out = planes;
  FASTDET_INDEPENDENT_ITERATIONS
  for (int64_t i = 0; i < n; ++i) {
    const CentredBox<double> box = {
        static_cast<double>(boxes[i].x), static_cast<double>(boxes[i].y),
        static_cast<double>(boxes[i].width), static_cast<double>(boxes[i].height)};
    const Box<double> corners = corners_of(box);
    out.x[i] = box.x;
    out.y[i] = box.y;
    out.width[i] = box.width;
    out.height[i] = box.height;
    out.x1[i] = corners.x1;
    out.y1[i] = corners.y1;
    out.x2[i] = corners.x2;
    out.y2[i] = corners.y2;
    out.area[i] = area(corners);
  }
}

template <typename S>
bool costs_of_gt(const QueryPlanes& queries, const CentredBox<S>& gt, const S* class_costs,
                 int64_t n, const QueryWeights& weights, double* __restrict__ cost) {
  const QueryPlanes q = queries;
  const QueryWeights w = weights;
  const MatchedBox target =
      MatchedBox::of({static_cast<double>(gt.x), static_cast<double>(gt.y),
                      static_cast<double>(gt.width), static_cast<double>(gt.height)});
  FASTDET_INDEPENDENT_ITERATIONS
  for (int64_t i = 0; i < n; ++i) {
    const MatchedBox query = {{q.x[i], q.y[i], q.width[i], q.height[i]},
                              {{q.x1[i], q.y1[i], q.x2[i], q.y2[i]}, q.area[i], 0}};
    cost[i] = query_cost(query, target, static_cast<double>(class_costs[i]), w);
  }
  int64_t num_finite = 0;
  for (int64_t i = 0; i < n; ++i) num_finite += cost[i] - cost[i] == 0;
  return num_finite == n;
}

template <typename S>
constexpr QueryLoops<S> kLoops = {
    .focal_costs = focal_costs<S>,
    .load_queries = load_queries<S>,
    .costs_of_gt = costs_of_gt<S>,
};

}  // namespace

FASTDET_LOOPS(QueryLoops<float>) { return kLoops<float>; }
FASTDET_LOOPS(QueryLoops<double>) { return kLoops<double>; }

}  // namespace fastdet::cpu::FASTDET_ISA
