// SPDX-License-Identifier: BSD-3-Clause
// Greedy non-maximum suppression over raw pointers: plain C++, no torch, so that the NumPy entry
// points run it too. Boxes are visited by falling score (ties: the lower index first,
// score_order.h), and each is compared with the kept boxes near it (kept_boxes.h). Boxes of
// different groups are not compared. If all boxes must be visited, the groups run in parallel. If
// the caller wants only the best few boxes, all groups are visited together in the order of the
// scores until enough boxes are kept.
//
// Cost: the sort, O(n), and about constant time for each box. The worst input costs n * kept IoUs,
// as brute force does. Memory O(n).
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "box_groups.h"
#include "kept_boxes.h"
#include "score_order.h"

namespace fastdet::cpu {

// One image.
template <typename T>
struct NmsInput {
  const Box<T>* boxes;
  const T* scores;
  const int64_t* groups;  // may be null: one group
  int64_t n;
};

constexpr int64_t kRowsInParallel = 1024;

// One group: writes at most `max_keep` kept indices; returns how many.
template <typename T>
int64_t nms_of_all(const NmsInput<T>& in, ScoreOrder<T>& order, const NmsThreshold<T>& threshold,
                   int64_t max_keep, int64_t* keep) {
  const int64_t n = order.size();
  const BoxStore<T> room(std::min(n, max_keep));
  KeptBoxes<T> kept(in.boxes, order.rows(), n, threshold, room.planes());
  int64_t num_kept = 0;
  for (int64_t r = 0; r < n && num_kept < max_keep; ++r) {
    const uint32_t i = order[r];
    if (kept.offer(in.boxes[i])) keep[num_kept++] = i;
  }
  return num_kept;
}

// The best `max_keep` boxes of all groups, visited together in the order of the scores.
template <typename T>
int64_t nms_in_turns(const NmsInput<T>& in, ScoreOrder<T>& order, const NmsThreshold<T>& threshold,
                     int64_t max_keep, int64_t* keep) {
  const int64_t n = order.size();
  const BoxGroups<T> groups(order.rows(), n, in.groups);
  std::vector<uint32_t> group_of(in.n);
  for (int64_t r = 0; r < n; ++r) group_of[order.rows()[r].index] = groups.number[r];
  const BoxStore<T> room(n);
  std::vector<KeptBoxes<T>> kept;
  kept.reserve(groups.size());
  for (int64_t g = 0; g < groups.size(); ++g)
    kept.emplace_back(in.boxes, groups.members.data() + groups.begin[g], groups.size(g), threshold,
                      room.planes(groups.begin[g]));
  int64_t num_kept = 0;
  for (int64_t r = 0; r < n && num_kept < max_keep; ++r) {
    const uint32_t i = order[r];
    if (kept[group_of[i]].offer(in.boxes[i])) keep[num_kept++] = i;
  }
  return num_kept;
}

// Calls body(g) for each group, in parallel. A piece of the n rows handles the groups that begin in
// it.
template <typename T, typename Parallel, typename Body>
void for_each_group(const BoxGroups<T>& groups, int64_t n, const Parallel& parallel,
                    const Body& body) {
  parallel(n, kRowsInParallel, [&](int64_t first, int64_t last) {
    const auto begin = groups.begin.begin(), end = groups.begin.end() - 1;
    for (auto g = std::lower_bound(begin, end, first) - begin; g < end - begin; ++g) {
      if (groups.begin[g] >= last) break;
      body(g);
    }
  });
}

// Each group is visited to its end, in parallel. Then one pass over the rows restores the score
// order.
template <typename T, typename Parallel>
int64_t nms_by_group(const NmsInput<T>& in, const ScoreOrder<T>& order,
                     const NmsThreshold<T>& threshold, int64_t max_keep, int64_t* keep,
                     const Parallel& parallel) {
  const int64_t n = order.size();
  const BoxGroups<T> groups(order.rows(), n, in.groups);
  std::vector<uint8_t> survives(n);
  for_each_group(groups, n, parallel, [&](int64_t g) {
    const int64_t at = groups.begin[g];
    const BoxStore<T> room(groups.size(g));
    KeptBoxes<T> kept(in.boxes, groups.members.data() + at, groups.size(g), threshold,
                      room.planes());
    for (int64_t j = at; j < at + groups.size(g); ++j)
      survives[groups.row[j]] = kept.offer(in.boxes[groups.members[j].index]);
  });
  int64_t num_kept = 0;
  for (int64_t r = 0; r < n && num_kept < max_keep; ++r)
    if (survives[r]) keep[num_kept++] = order.rows()[r].index;
  return num_kept;
}

// Writes at most `max_keep` kept indices by falling score to `keep`; returns how many.
// `iou_threshold` is rounded down to T (threshold.h). `parallel(n, grain, body)` calls
// body(begin, end) over pieces of [0, n); the result does not depend on the pieces.
template <typename T, typename Parallel>
int64_t greedy_nms(const NmsInput<T>& in, T iou_threshold, int64_t max_keep, int64_t* keep,
                   const Parallel& parallel) {
  const int64_t wanted = max_keep < in.n / 8 ? 4 * max_keep : in.n;
  ScoreOrder<T> order(in.boxes, in.scores, in.n, wanted);
  const bool any_tiny = std::any_of(in.boxes, in.boxes + in.n, is_tiny<T>);
  const NmsThreshold<T> threshold = nms_threshold(iou_threshold, any_tiny);
  if (!in.groups) return nms_of_all(in, order, threshold, max_keep, keep);
  if (wanted < in.n) return nms_in_turns(in, order, threshold, max_keep, keep);
  return nms_by_group(in, order, threshold, max_keep, keep, parallel);
}

}  // namespace fastdet::cpu
