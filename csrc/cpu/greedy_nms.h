// SPDX-License-Identifier: BSD-3-Clause
// Greedy non-maximum suppression over raw pointers: plain C++, no torch, so that the NumPy entry
// points run it too. Boxes are visited by falling score (ties: the lower index first) and each is
// tested against the boxes kept so far: O(n * kept) IoUs at most, O(n) memory.
// A score that is NaN or a coordinate that is not finite drops the box before the sort.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "loops.h"

namespace fastdet::cpu {

// One image.
template <typename T>
struct NmsInput {
  const Box<T>* boxes;
  const T* scores;
  const int64_t* groups;  // may be null: one group
  int64_t n;
};

// Indices of the usable boxes by (score falling, index rising).
template <typename T>
std::vector<int64_t> score_order(const NmsInput<T>& in) {
  std::vector<int64_t> order;
  order.reserve(in.n);
  for (int64_t i = 0; i < in.n; ++i)
    if (!std::isnan(in.scores[i]) && is_finite(in.boxes[i])) order.push_back(i);
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return in.scores[a] != in.scores[b] ? in.scores[a] > in.scores[b] : a < b;
  });
  return order;
}

// The kept boxes of one group, one array a coordinate.
template <typename T>
class KeptBoxes {
 public:
  explicit KeptBoxes(int64_t capacity) : storage_(5 * capacity) {
    T* p = storage_.data();
    planes_ = {p, p + capacity, p + 2 * capacity, p + 3 * capacity, p + 4 * capacity};
  }

  void clear() { n_ = 0; }

  // Keeps the box unless it overlaps a kept one.
  bool offer(const Box<T>& box, T iou_threshold) {
    const T box_area = area(box);
    if (box_loops<T>().overlaps_any(planes_, n_, box, box_area, iou_threshold)) return false;
    planes_.x1[n_] = box.x1;
    planes_.y1[n_] = box.y1;
    planes_.x2[n_] = box.x2;
    planes_.y2[n_] = box.y2;
    planes_.area[n_++] = box_area;
    return true;
  }

 private:
  std::vector<T> storage_;
  BoxPlanes<T> planes_;
  int64_t n_ = 0;
};

// Writes at most `max_keep` kept indices by falling score to `keep`; returns how many.
// `iou_threshold` is rounded down to T (threshold.h). `parallel(n, grain, body)` calls
// body(begin, end) over pieces of [0, n); the result does not depend on the pieces.
template <typename T, typename Parallel>
int64_t greedy_nms(const NmsInput<T>& in, T iou_threshold, int64_t max_keep, int64_t* keep,
                   [[maybe_unused]] const Parallel& parallel) {
  const std::vector<int64_t> order = score_order(in);
  const int64_t n = static_cast<int64_t>(order.size());
  KeptBoxes<T> kept(n);
  int64_t num_kept = 0;
  if (!in.groups) {
    for (int64_t r = 0; r < n && num_kept < max_keep; ++r)
      if (kept.offer(in.boxes[order[r]], iou_threshold)) keep[num_kept++] = order[r];
    return num_kept;
  }
  // Group by group over ranks in score order, then one walk over the ranks restores that order.
  std::vector<int64_t> by_group(n);
  for (int64_t r = 0; r < n; ++r) by_group[r] = r;
  std::stable_sort(by_group.begin(), by_group.end(),
                   [&](int64_t a, int64_t b) { return in.groups[order[a]] < in.groups[order[b]]; });
  std::vector<uint8_t> survives(n, 0);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t index = order[by_group[i]];
    if (i > 0 && in.groups[index] != in.groups[order[by_group[i - 1]]]) kept.clear();
    survives[by_group[i]] = kept.offer(in.boxes[index], iou_threshold);
  }
  for (int64_t r = 0; r < n && num_kept < max_keep; ++r)
    if (survives[r]) keep[num_kept++] = order[r];
  return num_kept;
}

}  // namespace fastdet::cpu
