// SPDX-License-Identifier: BSD-3-Clause
// Non-maximum merging over raw pointers, plain C++. Boxes are visited by falling score (ties: the
// lower index first). A visited box claims the boxes after it that overlap it by at least the
// threshold and that no other box has claimed: they join its group. With the greedy rule only boxes
// that nobody has claimed claim others; with the transitive rule all boxes do. A group's box
// encloses its members. Boxes of different labels are not compared.
//
// Cost: the sort by score, and about constant time for each box, by a grid (cell_grid.h). The worst
// input costs n^2 overlaps in vectors, as brute force does. Memory O(n).
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "box_groups.h"
#include "cell_grid.h"
#include "greedy_nms.h"
#include "nmm_rule.h"

namespace fastdet::cpu {

// The boxes of one label that can overlap others, and who has claimed them.
template <typename T>
class MergeGroup {
 public:
  // `members`: the rows of the label by falling score.
  MergeGroup(const Box<T>* boxes, const NmmRule<T>& rule, const Ranked<T>* members, int64_t n)
      : rule_(rule), store_(n) {
    static_assert(kNmmOverread <= kNmsOverread);
    by_score_.reserve(n);
    std::vector<uint32_t> rows;
    rows.reserve(n);
    for (int64_t j = 0; j < n; ++j) {
      const Box<T>& box = boxes[members[j].index];
      const T box_area = area(box);
      if (!can_overlap(box, box_area)) continue;
      const T least = min_of(box_area, min_of(box.x2 - box.x1, box.y2 - box.y1));
      any_tiny_ = any_tiny_ || least < kTiny<T>;
      by_score_.push_back(box);
      rows.push_back(members[j].index);
    }
    place(rows);
  }

  void merge() {
    found_ = std::make_unique_for_overwrite<uint32_t[]>(by_score_.size());
    for (size_t j = 0; j < by_score_.size(); ++j) {
      const uint32_t own = visit_[j];
      const bool claimed = kept_[own] != kNobody;
      if (claimed && !rule_.transitive) continue;
      if (!claimed) claim(own, own);
      const uint32_t group = kept_[own];
      enlarged_[group] = claim_around(by_score_[j], group, enlarged_[group]);
    }
  }

  void write(int64_t* index, Box<T>* merged) const {
    for (size_t p = 0; p < row_.size(); ++p) {
      index[row_[p]] = row_[kept_[p]];
      merged[row_[p]] = enlarged_[p];
    }
  }

 private:
  static constexpr uint32_t kNobody = UINT32_MAX;

  // Sorts the boxes by the places of a grid.
  void place(const std::vector<uint32_t>& rows) {
    const size_t n = rows.size();
    // The margin covers the rounding errors of products, unless an area or a side has lost digits.
    constexpr T kShrink = T(1) - 16 * std::numeric_limits<T>::epsilon();
    filter_ = any_tiny_ || rule_.above <= T(1e-6) ? T(0) : rule_.above * kShrink;
    visit_ = grid_.sort(by_score_);
    enlarged_.resize(n);
    row_.resize(n);
    kept_.assign(n, kNobody);
    waiting_.assign(n / 64 + 2, ~uint64_t(0));
    for (size_t j = 0; j < n; ++j) {
      const Box<T>& box = by_score_[j];
      const uint32_t p = visit_[j];
      enlarged_[p] = box;
      row_[p] = rows[j];
      put(store_.planes(), p, box, area(box));
    }
  }

  void claim(uint32_t place, uint32_t group) {
    kept_[place] = group;
    waiting_[place / 64] &= ~(uint64_t(1) << place % 64);
  }

  // Claims the boxes that overlap `box` and that nobody has claimed. Returns the box that encloses
  // them and `all`.
  Box<T> claim_around(const Box<T>& box, uint32_t group, Box<T> all) {
    const BoxPlanes<T> b = store_.planes();
    const Seeker<T> seeker = {box, area(box), rule_.above, filter_};
    grid_.for_each_level(box, filter_ * (1 - kMargin), rule_.metric, [&](const CellRows& rows) {
      const int64_t num_found =
          loops_.find(rule_.metric, b, rows, waiting_.data(), seeker, found_.get());
      for (int64_t k = 0; k < num_found; ++k) {
        const uint32_t p = found_[k];
        claim(p, group);
        all = enclosing(all, {b.x1[p], b.y1[p], b.x2[p], b.y2[p]});
      }
    });
    return all;
  }

  NmmRule<T> rule_;
  const NmmLoops<T>& loops_ = current_loops<NmmLoops<T>>();
  bool any_tiny_ = false;
  std::vector<Box<T>> by_score_;
  CellGrid<T> grid_;
  T filter_;
  std::vector<uint32_t> visit_;  // the place of each box, by score
  // By place:
  std::vector<Box<T>> enlarged_;      // the box of a kept box's group, or the box itself
  std::vector<uint32_t> row_, kept_;  // the row; the place of the group's kept box
  std::vector<uint64_t> waiting_;     // a bit for each box that nobody has claimed
  BoxStore<T> store_;
  std::unique_ptr<uint32_t[]> found_;
};

// index[i] is the row that box i is merged into, i if it is kept, -1 if it is not usable. merged[i]
// is the box of a kept row's group, and the box itself in every other row.
template <typename T, typename Parallel>
void merge_boxes(const NmsInput<T>& in, const NmmRule<T>& rule, int64_t* index, Box<T>* merged,
                 const Parallel& parallel) {
  std::fill(index, index + in.n, int64_t(-1));
  std::copy(in.boxes, in.boxes + in.n, merged);
  const ScoreOrder<T> order(in.boxes, in.scores, in.n, in.n);
  const int64_t n = order.size();
  for (int64_t r = 0; r < n; ++r) index[order.rows()[r].index] = order.rows()[r].index;
  const auto merge = [&](const Ranked<T>* members, int64_t num_members) {
    MergeGroup<T> group(in.boxes, rule, members, num_members);
    group.merge();
    group.write(index, merged);
  };
  if (!in.groups) return merge(order.rows(), n);
  const BoxGroups<T> groups(order.rows(), n, in.groups);
  for_each_group(groups, n, parallel, [&](int64_t g) {
    merge(groups.members.data() + groups.begin[g], groups.size(g));
  });
}

}  // namespace fastdet::cpu
