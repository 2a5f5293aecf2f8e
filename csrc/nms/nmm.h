// SPDX-License-Identifier: BSD-3-Clause
// Non-maximum merging over raw pointers, plain C++. Boxes are visited by falling score (ties: the
// lower index first). A visited box claims the boxes after it that overlap it by at least the
// threshold and that no other box has claimed: they join its group. With the greedy rule only boxes
// that nobody has claimed claim others; with the transitive rule all boxes do. A group's box
// encloses its members. Boxes of different labels are not compared.
//
// Cost: two sorts, by score and by place, and about constant time for each box (box_bundles.h). The
// worst input costs n^2 overlaps in vectors, as brute force does. Memory O(n).
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "box_bundles.h"
#include "box_groups.h"
#include "greedy_nms.h"

namespace fastdet::cpu {

// The boxes of one label that can overlap others, in the order of their places.
template <typename T>
struct PlacedBoxes {
  std::vector<Box<T>> boxes;
  std::vector<uint32_t> row, visit;  // the row at each place; the places by falling score

  // `members`: the rows of the label by falling score.
  PlacedBoxes(const Box<T>* all, const Ranked<T>* members, int64_t n) {
    boxes.reserve(n);
    row.reserve(n);
    for (int64_t j = 0; j < n; ++j) {
      const Box<T>& box = all[members[j].index];
      if (!can_overlap(box, area(box))) continue;
      boxes.push_back(box);
      row.push_back(members[j].index);
    }
    visit.resize(boxes.size());
    std::iota(visit.begin(), visit.end(), 0);
    if (static_cast<int64_t>(boxes.size()) > kBundle) sort();
  }

 private:
  void sort() {
    const PlaceKeys<T> keys(boxes);
    std::vector<Ranked<float>> places(boxes.size());
    for (size_t j = 0; j < boxes.size(); ++j)
      places[j].key = keys.of(boxes[j]), places[j].index = static_cast<uint32_t>(j);
    radix_sort(places);
    std::vector<Box<T>> moved_boxes(boxes.size());
    std::vector<uint32_t> moved_row(row.size());
    for (size_t p = 0; p < places.size(); ++p) {
      moved_boxes[p] = boxes[places[p].index];
      moved_row[p] = row[places[p].index];
      visit[places[p].index] = static_cast<uint32_t>(p);
    }
    boxes.swap(moved_boxes);
    row.swap(moved_row);
  }
};

// `members`: the rows of one label by falling score. In `index` each row is its own group, in
// `merged` its own box.
template <typename T>
void merge_group(const Box<T>* boxes, const NmmRule<T>& rule, const Ranked<T>* members, int64_t n,
                 int64_t* index, Box<T>* merged) {
  PlacedBoxes<T> placed(boxes, members, n);
  BoxBundles<T> others(placed.boxes, rule);
  constexpr uint32_t kNobody = UINT32_MAX;
  std::vector<uint32_t> kept(placed.boxes.size(), kNobody);  // the place of the group's kept box
  for (const uint32_t own : placed.visit) {
    const bool claimed = kept[own] != kNobody;
    if (claimed && !rule.transitive) continue;
    if (!claimed) {
      kept[own] = own;
      others.remove(own);
    }
    const uint32_t group = kept[own];
    // The box of a place is still its own: only boxes that were visited before are enlarged.
    const Box<T> box = placed.boxes[own];
    Box<T> enlarged = placed.boxes[group];
    others.take_overlapping(box, [&](int64_t other) {
      kept[other] = group;
      enlarged = enclosing(enlarged, others.at(other));
    });
    placed.boxes[group] = enlarged;
  }
  for (size_t p = 0; p < kept.size(); ++p) {
    index[placed.row[p]] = placed.row[kept[p]];
    merged[placed.row[p]] = placed.boxes[p];
  }
}

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
  if (!in.groups) return merge_group(in.boxes, rule, order.rows(), n, index, merged);
  const BoxGroups<T> groups(order.rows(), n, in.groups);
  for_each_group(groups, n, parallel, [&](int64_t g) {
    merge_group(in.boxes, rule, groups.members.data() + groups.begin[g], groups.size(g), index,
                merged);
  });
}

}  // namespace fastdet::cpu
