// SPDX-License-Identifier: BSD-3-Clause
// Soft-NMS over raw pointers, plain C++. Each step picks the box with the highest score and lowers
// the scores of the boxes that overlap it and have its label. Boxes lie in blocks of neighbours of
// one label. A pick changes nothing in a block that it does not overlap, so it costs one test for
// each block and a pass over a few blocks: O(n + picks * (blocks + boxes near the pick)) after the
// sort. O(n) memory.
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
  // `labels` may be null: one label.
  SoftNms(const Box<T>* boxes, const T* scores, const int64_t* labels, int64_t n,
          const SoftNmsRule<T>& rule)
      : boxes_(boxes), rule_(rule) {
    for (int64_t i = 0; i < n; ++i)
      if (rule.first(scores[i], boxes[i]) >= T(0)) index_.push_back(i);
    if (labels)
      std::sort(index_.begin(), index_.end(), [labels](int64_t a, int64_t b) {
        return labels[a] != labels[b] ? labels[a] < labels[b] : a < b;
      });
    planes_.resize(5 * index_.size());
    for (int64_t begin = 0, end = 0; begin < size(); begin = end) {
      const int64_t label = labels ? labels[index_[begin]] : 0;
      while (end < size() && (!labels || labels[index_[end]] == label)) ++end;
      sort_neighbours(begin, end);
      for (int64_t j = begin; j < end; ++j) {
        scores_.push_back(rule.first(scores[index_[j]], boxes[index_[j]]));
        place(j, boxes[index_[j]]);
      }
      for (int64_t j = begin; j < end; j += kSoftNmsBlock)
        add_block(label, j, std::min(j + kSoftNmsBlock, end));
    }
  }

  // Calls pick(index, score) for each pick, in the order of picking, which is by falling score.
  template <typename OnPick>
  void run(const OnPick& on_pick) {
    for (Pick pick = best(); pick.place >= 0; pick = best()) {
      on_pick(index_[pick.place], scores_[pick.place]);
      const Box<T> box = at(pick.place);
      const int64_t label = blocks_[pick.block].label;
      scores_[pick.place] = T(-1);
      for (int64_t b = 0; b < static_cast<int64_t>(blocks_.size()); ++b)
        if (b == pick.block ||
            (best_[b] >= T(0) && blocks_[b].label == label && meets(blocks_[b].hull, box)))
          decay(b, box);
    }
  }

 private:
  // Boxes of one label at places [begin, end).
  struct Block {
    Box<T> hull;
    int64_t label, begin, end;
  };

  struct Pick {
    int64_t place, block;
  };

  int64_t size() const { return static_cast<int64_t>(index_.size()); }

  // Sorts index_[begin, end) by tiles of the image, so that neighbours in space are neighbours in
  // memory.
  void sort_neighbours(int64_t begin, int64_t end) {
    Box<double> all = {0, 0, 0, 0};
    for (int64_t j = begin; j < end; ++j) {
      const double x = boxes_[index_[j]].x1, y = boxes_[index_[j]].y1;
      all = j == begin ? Box<double>{x, y, x, y} : enclosing(all, {x, y, x, y});
    }
    const double strips_in_all = std::sqrt(static_cast<double>(end - begin) / kSoftNmsBlock);
    const double strip_height = (all.y2 - all.y1) / strips_in_all;
    std::vector<std::pair<double, int64_t>> rows(end - begin);  // strip, index
    for (int64_t j = begin; j < end; ++j) {
      const double strip = std::floor((boxes_[index_[j]].y1 - all.y1) / strip_height);
      // Not finite if coordinates are equal or huge.
      rows[j - begin] = {std::isfinite(strip) ? strip : 0, index_[j]};
    }
    std::sort(rows.begin(), rows.end(), [this](const auto& a, const auto& b) {
      if (a.first != b.first) return a.first < b.first;
      const T left = boxes_[a.second].x1, other = boxes_[b.second].x1;
      return left != other ? left < other : a.second < b.second;
    });
    for (int64_t j = begin; j < end; ++j) index_[j] = rows[j - begin].second;
  }

  void add_block(int64_t label, int64_t begin, int64_t end) {
    Box<T> hull = at(begin);
    for (int64_t j = begin + 1; j < end; ++j) hull = enclosing(hull, at(j));
    blocks_.push_back({hull, label, begin, end});
    best_.push_back(*std::max_element(scores_.begin() + begin, scores_.begin() + end));
  }

  BoxPlanes<T> planes_from(int64_t j) {
    T* p = planes_.data() + j;
    return {p, p + size(), p + 2 * size(), p + 3 * size(), p + 4 * size()};
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

  // A pick that cannot overlap a box of the block has IoU 0 with each of them. This changes no
  // score: even at threshold 0, the linear rule multiplies by 1 - 0.
  static bool meets(const Box<T>& hull, const Box<T>& box) {
    return box.x1 < hull.x2 && hull.x1 < box.x2 && box.y1 < hull.y2 && hull.y1 < box.y2;
  }

  void decay(int64_t b, const Box<T>& picked) {
    const Block& block = blocks_[b];
    best_[b] = current_loops<SoftNmsLoops<T>>().decay_scores(
        rule_, picked, area(picked), planes_from(block.begin), block.end - block.begin,
        scores_.data() + block.begin);
  }

  // The highest score; of equal scores, that of the lowest index. Place -1 if no box is left.
  Pick best() const {
    T most = T(-1);
    for (const T score : best_) most = max_of(most, score);
    Pick found = {-1, -1};
    if (most < T(0)) return found;
    for (int64_t b = 0; b < static_cast<int64_t>(best_.size()); ++b) {
      if (best_[b] != most) continue;
      for (int64_t j = blocks_[b].begin; j < blocks_[b].end; ++j)
        if (scores_[j] == most && (found.place < 0 || index_[j] < index_[found.place]))
          found = {j, b};
    }
    return found;
  }

  const Box<T>* boxes_;
  SoftNmsRule<T> rule_;
  std::vector<int64_t> index_;  // of the usable boxes, block by block
  std::vector<T> planes_, scores_;
  std::vector<Block> blocks_;
  std::vector<T> best_;  // the highest score of each block, -1 if none is left
};

}  // namespace fastdet::cpu
