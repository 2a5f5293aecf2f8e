// SPDX-License-Identifier: BSD-3-Clause
// Soft-NMS over raw pointers, plain C++. Each step picks the box with the highest score and lowers
// the scores of the boxes that overlap it. Boxes lie in blocks of neighbours. A pick changes
// nothing in a block that it does not overlap, so it costs one test for each block and a pass over
// a few blocks: O(n + picks * (n / kSoftNmsBlock + boxes near the pick)) after the sort. O(n)
// memory.
//
// Neither the order of the blocks nor the skipping changes the result. A score is lowered by the
// picks that overlap its box, in the order of the picks; of equal scores the lowest index is
// picked.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "soft_nms.loops.h"

namespace fastdet::cpu {

constexpr int64_t kSoftNmsBlock = 64;

template <typename T>
class SoftNms {
 public:
  SoftNms(const Box<T>* boxes, const T* scores, int64_t n, const SoftNmsRule<T>& rule)
      : rule_(rule), index_(neighbours_in_order(boxes, scores, n)), planes_(5 * index_.size()) {
    const auto size = static_cast<int64_t>(index_.size());
    for (const int64_t i : index_) scores_.push_back(scores[i] + T(0));  // -0 becomes 0
    for (int64_t j = 0; j < size; ++j) place(j, boxes[index_[j]]);
    for (int64_t begin = 0; begin < size; begin += kSoftNmsBlock) {
      hulls_.push_back(hull_of(begin, std::min(begin + kSoftNmsBlock, size)));
      best_.push_back(*std::max_element(scores_.begin() + begin,
                                        scores_.begin() + std::min(begin + kSoftNmsBlock, size)));
    }
  }

  // The index and the score of each pick, in the order of picking, which is by falling score.
  void run(std::vector<int64_t>& keep, std::vector<T>& kept_scores) {
    while (true) {
      const int64_t pick = best();
      if (pick < 0) return;
      keep.push_back(index_[pick]);
      kept_scores.push_back(scores_[pick]);
      const Box<T> box = at(pick);
      scores_[pick] = T(-1);
      for (int64_t b = 0; b < static_cast<int64_t>(hulls_.size()); ++b)
        if (b == pick / kSoftNmsBlock || (best_[b] >= T(0) && meets(hulls_[b], box))) decay(b, box);
    }
  }

 private:
  // The usable boxes, sorted by tiles of the image, so that neighbours in space are neighbours in
  // memory.
  std::vector<int64_t> neighbours_in_order(const Box<T>* boxes, const T* scores, int64_t n) const {
    std::vector<int64_t> order;
    Box<double> all = {0, 0, 0, 0};
    for (int64_t i = 0; i < n; ++i) {
      if (!(scores[i] >= rule_.score_threshold) || !is_finite(scores[i]) || !is_finite(boxes[i]))
        continue;
      const double x = boxes[i].x1, y = boxes[i].y1;
      if (order.empty()) all = {x, y, x, y};
      all = {min_of(all.x1, x), min_of(all.y1, y), max_of(all.x2, x), max_of(all.y2, y)};
      order.push_back(i);
    }
    const double strips_in_all = std::sqrt(static_cast<double>(order.size()) / kSoftNmsBlock);
    const double strip_height = (all.y2 - all.y1) / strips_in_all;
    std::vector<double> strips(n);
    for (const int64_t i : order) {
      const double strip = std::floor((boxes[i].y1 - all.y1) / strip_height);
      strips[i] = std::isfinite(strip) ? strip : 0;  // if coordinates are equal or huge
    }
    std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      if (strips[a] != strips[b]) return strips[a] < strips[b];
      return boxes[a].x1 != boxes[b].x1 ? boxes[a].x1 < boxes[b].x1 : a < b;
    });
    return order;
  }

  BoxPlanes<T> planes_from(int64_t j) {
    const auto size = static_cast<int64_t>(index_.size());
    T* p = planes_.data() + j;
    return {p, p + size, p + 2 * size, p + 3 * size, p + 4 * size};
  }

  void place(int64_t j, const Box<T>& box) {
    const BoxPlanes<T> p = planes_from(j);
    *p.x1 = box.x1, *p.y1 = box.y1, *p.x2 = box.x2, *p.y2 = box.y2;
    *p.area = area(box);
  }

  Box<T> at(int64_t j) {
    const BoxPlanes<T> p = planes_from(j);
    return {*p.x1, *p.y1, *p.x2, *p.y2};
  }

  Box<T> hull_of(int64_t begin, int64_t end) {
    Box<T> hull = at(begin);
    for (int64_t j = begin + 1; j < end; ++j) {
      const Box<T> box = at(j);
      hull = {min_of(hull.x1, box.x1), min_of(hull.y1, box.y1), max_of(hull.x2, box.x2),
              max_of(hull.y2, box.y2)};
    }
    return hull;
  }

  // A pick that cannot overlap a box of the block has IoU 0 with each of them. This changes no
  // score: even at threshold 0, the linear rule multiplies by 1 - 0.
  static bool meets(const Box<T>& hull, const Box<T>& box) {
    return box.x1 < hull.x2 && hull.x1 < box.x2 && box.y1 < hull.y2 && hull.y1 < box.y2;
  }

  void decay(int64_t block, const Box<T>& picked) {
    const int64_t begin = block * kSoftNmsBlock;
    const int64_t end = std::min(begin + kSoftNmsBlock, static_cast<int64_t>(index_.size()));
    best_[block] = current_loops<SoftNmsLoops<T>>().decay_scores(
        rule_, picked, area(picked), planes_from(begin), end - begin, scores_.data() + begin);
  }

  // The position of the highest score; of equal scores, that of the lowest index. -1 if no box is
  // left.
  int64_t best() const {
    T most = T(-1);
    for (const T score : best_) most = max_of(most, score);
    int64_t found = -1;
    if (most < T(0)) return found;
    for (int64_t b = 0; b < static_cast<int64_t>(best_.size()); ++b) {
      if (best_[b] != most) continue;
      const int64_t begin = b * kSoftNmsBlock;
      const int64_t end = std::min(begin + kSoftNmsBlock, static_cast<int64_t>(index_.size()));
      for (int64_t j = begin; j < end; ++j)
        if (scores_[j] == most && (found < 0 || index_[j] < index_[found])) found = j;
    }
    return found;
  }

  SoftNmsRule<T> rule_;
  std::vector<int64_t> index_;  // of the boxes, block by block
  std::vector<T> planes_, scores_;
  std::vector<Box<T>> hulls_;
  std::vector<T> best_;  // the highest score of each block, -1 if none is left
};

}  // namespace fastdet::cpu
