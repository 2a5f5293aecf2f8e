// SPDX-License-Identifier: BSD-3-Clause
// The boxes that greedy NMS has kept, and the test whether a new box overlaps one of them.
//
// At first a query tests all kept boxes, a vector at a time. When a grid becomes cheaper, the kept
// boxes move into a grid of cells by size and centre, and a query reads only the cells that can
// hold an overlapping box. If IoU(a, b) > t, then the overlap is wider than t * max(width a, width
// b), because the intersection is at most the overlap's width times the height of either box. So
// the width of each box is at most the other's width / t, and the centres are closer than (width a
// + width b) / 2 - t * max(width a, width b). The same holds in y. Kept boxes overlap each other by
// at most t, so few of them share a cell whose side is proportional to theirs: a query costs about
// the same for any number of kept boxes.
//
// The grid never changes the result: the IoU of a pair that it skips is at most t in floating point
// too. kSlack covers the rounding errors. The grid is not used if a box is so small that its area
// loses digits (kTiny).
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "../geometry/overlap.h"
#include "nms.loops.h"
#include "score_order.h"

namespace fastdet::cpu {

// Measured costs, in vectors of kept boxes: a query of the grid, one cell of a query, and adding
// one box to the grid.
constexpr int64_t kQueryCost = 56, kCellCost = 3, kFillCost = 24;
constexpr int64_t kReview = 128;  // offers between two comparisons of the costs
constexpr int64_t kMaxRuns = 64;  // cells; a query that needs more tests all boxes instead
constexpr double kSlack = 1e-6;

template <typename T>
bool is_tiny(const Box<T>& box) {
  const T box_area = area(box);
  return can_overlap(box, box_area) && box_area < kTiny<T>;
}

// `iou` is rounded down to T. Relative rounding errors change a product by at most 1e-6 of it. For
// the share: the union, the share and its sum have three roundings each, so 9 halves of epsilon,
// and 16 are taken off.
template <typename T>
NmsThreshold<T> nms_threshold(T iou, bool any_tiny) {
  constexpr T kEpsilon = std::numeric_limits<T>::epsilon();
  const bool proportional = !any_tiny && iou > T(1e-6);
  const T filter = proportional ? iou * (T(1) - 4 * kEpsilon) : T(0);
  return {iou, filter, filter / (T(1) + filter) * (T(1) - 8 * kEpsilon)};
}

// Whether the grid may be used: not if a tiny box has set the filter to 0.
template <typename T>
bool prunes(const NmsThreshold<T>& threshold) {
  return threshold.filter > 0 || threshold.iou <= T(1e-6);
}

// Memory for boxes, one array for each coordinate. Each begins on a cache line: of a vector of
// AVX-512 across two lines, both would be read.
template <typename T>
class BoxStore {
 public:
  explicit BoxStore(int64_t capacity)
      : stride_((capacity + kNmsOverread + kInLine - 1) / kInLine * kInLine),
        lines_(std::make_unique_for_overwrite<Line[]>(5 * stride_ / kInLine)) {}

  BoxPlanes<T> planes(int64_t begin = 0) const {
    T* p = lines_[0].values + begin;
    return {p, p + stride_, p + 2 * stride_, p + 3 * stride_, p + 4 * stride_};
  }

 private:
  static constexpr int64_t kInLine = 64 / sizeof(T);
  struct alignas(64) Line {
    T values[kInLine];
  };

  int64_t stride_;
  std::unique_ptr<Line[]> lines_;
};

template <typename T>
void put(const BoxPlanes<T>& planes, int64_t i, const Box<T>& box, T box_area) {
  planes.x1[i] = box.x1, planes.y1[i] = box.y1;
  planes.x2[i] = box.x2, planes.y2[i] = box.y2;
  planes.area[i] = box_area;
}

// The grid: cells by size level and centre, which a hash assigns to buckets.
template <typename T>
class SizeGrid {
 public:
  // Has room for the boxes of all `members`. `filter` is that of the threshold; with 0, a query
  // finds all boxes that touch.
  SizeGrid(const Box<T>* boxes, const Ranked<T>* members, int64_t n, T filter)
      : ratio_(filter * (1 - kSlack)),
        shift_(64 - std::bit_width(static_cast<uint64_t>(n / 4))),
        buckets_(int64_t(1) << (64 - shift_)),
        store_(n) {
    measure_levels(boxes, members, n);
    for (int64_t j = 0; j < n; ++j) {
      const Box<T>& box = boxes[members[j].index];
      if (can_overlap(box, area(box))) ++bucket_of(box).begin;
    }
    uint32_t begin = 0;
    for (KeptRun& bucket : buckets_) begin += std::exchange(bucket.begin, begin);
  }

  void insert(const Box<T>& box, T box_area) {
    KeptRun& bucket = bucket_of(box);
    put(store_.planes(), bucket.begin + bucket.count++, box, box_area);
  }

  // Gives no answer if the query would read more than `max_cells` cells.
  std::optional<bool> overlaps_any(const Box<T>& box, T box_area, const NmsThreshold<T>& threshold,
                                   int64_t max_cells) const {
    std::array<KeptRun, kMaxRuns> runs;
    int64_t num_runs = 0, cells_left = std::min(max_cells, kMaxRuns);
    const double longer = longer_side(box);
    for (int l = 0; l < num_levels_; ++l) {
      const Level& level = levels_[l];
      if (level.smallest * ratio_ > longer) continue;
      const Span x = span(box.x1, box.x2, level.width, level.cells_per_x);
      const Span y = span(box.y1, box.y2, level.height, level.cells_per_y);
      if (x.size() <= 0 || y.size() <= 0) continue;
      if (x.size() > cells_left || y.size() > cells_left) return std::nullopt;
      cells_left -= x.size() * y.size();
      if (cells_left < 0) return std::nullopt;
      for (int64_t v = y.first; v <= y.last; ++v)
        for (int64_t u = x.first; u <= x.last; ++u) {
          const KeptRun& bucket = buckets_[hash(l, u, v)];
          runs[num_runs] = bucket;
          num_runs += bucket.count > 0;
        }
    }
    return current_loops<NmsLoops<T>>().find_overlap(store_.planes(), runs.data(), num_runs, box,
                                                     box_area, threshold) >= 0;
  }

 private:
  static constexpr int kLevels =
      8;  // each holds sizes up to a factor of 4; the last one holds all smaller boxes

  struct Level {
    double smallest = std::numeric_limits<double>::infinity();  // of the longer sides
    double width = 0, height = 0;                               // the largest of the level
    double cells_per_x = 0, cells_per_y = 0;                    // per pixel
  };

  struct Span {
    int64_t first, last;

    int64_t size() const { return last - first + 1; }
  };

  static double longer_side(const Box<T>& box) {
    return std::max(double(box.x2) - box.x1, double(box.y2) - box.y1);
  }

  int level_of(const Box<T>& box) const {
    const double quotient = largest_ / longer_side(box);
    const int exponent = int(std::bit_cast<uint64_t>(quotient) >> 52) - 1023;
    return std::min(exponent / 2, kLevels - 1);
  }

  // The side of a level's cells is 1 - t times the longest side of the level, which is the reach of
  // its largest box (see span), but at least 1/16 of that side.
  void measure_levels(const Box<T>* boxes, const Ranked<T>* members, int64_t n) {
    for (int64_t j = 0; j < n; ++j) {
      const Box<T>& box = boxes[members[j].index];
      if (can_overlap(box, area(box))) largest_ = std::max(largest_, longer_side(box));
    }
    for (int64_t j = 0; j < n; ++j) {
      const Box<T>& box = boxes[members[j].index];
      if (!can_overlap(box, area(box))) continue;
      const int l = level_of(box);
      Level& level = levels_[l];
      num_levels_ = std::max(num_levels_, l + 1);
      level.smallest = std::min(level.smallest, longer_side(box));
      level.width = std::max(level.width, double(box.x2) - box.x1);
      level.height = std::max(level.height, double(box.y2) - box.y1);
    }
    const double reach = std::max(1 - ratio_, 1.0 / 16);
    for (Level& level : levels_) {
      level.cells_per_x = std::min(1 / (reach * level.width), 1e300);
      level.cells_per_y = std::min(1 / (reach * level.height), 1e300);
    }
  }

  // Monotonic: never falls as the coordinate rises.
  static int64_t cell(double coordinate, double cells_per_pixel) {
    constexpr double kFar = 1e15;
    return static_cast<int64_t>(std::floor(std::clamp(coordinate * cells_per_pixel, -kFar, kFar)));
  }

  static double centre(double low, double high) { return 0.5 * low + 0.5 * high; }

  uint64_t hash(int level, int64_t u, int64_t v) const {
    return (u * 0x9E3779B97F4A7C15u + v * 0xC2B2AE3D27D4EB4Fu + level * 0x165667B19E3779F9u) >>
           shift_;
  }

  KeptRun& bucket_of(const Box<T>& box) {
    const int l = level_of(box);
    return buckets_[hash(l, cell(centre(box.x1, box.x2), levels_[l].cells_per_x),
                         cell(centre(box.y1, box.y2), levels_[l].cells_per_y))];
  }

  // On one axis, the cells of a level that can hold an overlapping box; `longest` is the level's
  // longest side.
  Span span(double low, double high, double longest, double cells_per_pixel) const {
    const double side = high - low;
    if (longest < ratio_ * side) return {0, -1};
    double partner = std::min(longest, side);  // the side of the partner that may lie farthest
    if (ratio_ < 0.5) partner = std::min(longest, side / ratio_);
    const double reach = 0.5 * side + 0.5 * partner - ratio_ * std::max(side, partner);
    const double middle = centre(low, high);
    const double margin = reach * kSlack + std::abs(middle) * 1e-15;  // covers all rounding errors
    return {cell(middle - reach - margin, cells_per_pixel),
            cell(middle + reach + margin, cells_per_pixel)};
  }

  double ratio_;  // the threshold, less a margin for rounding errors
  double largest_ = 0;
  std::array<Level, kLevels> levels_;
  int num_levels_ = 0;
  int shift_;
  std::vector<KeptRun> buckets_;
  BoxStore<T> store_;
};

// The kept boxes of one group.
template <typename T>
class KeptBoxes {
 public:
  // `members`: all boxes that may be offered. `room` has space for all of them.
  KeptBoxes(const Box<T>* boxes, const Ranked<T>* members, int64_t n,
            const NmsThreshold<T>& threshold, const BoxPlanes<T>& room)
      : boxes_(boxes), members_(members), size_(n), threshold_(threshold), kept_(room) {}

  // Keeps the box unless it overlaps a kept one.
  bool offer(const Box<T>& box) {
    const T box_area = area(box);
    if (++num_offers_ % kReview == 0 && !grid_) review();
    if (!can_overlap(box, box_area)) return true;  // it suppresses no other box either
    if (overlaps_any(box, box_area)) return false;
    put(kept_, n_++, box, box_area);
    if (grid_) grid_->insert(box, box_area);
    return true;
  }

 private:
  bool overlaps_any(const Box<T>& box, T box_area) {
    if (grid_) {
      const int64_t max_cells = n_ / (kCellCost * loops_.lanes);
      const auto answer = grid_->overlaps_any(box, box_area, threshold_, max_cells);
      if (answer) return *answer;
    }
    const KeptRun all = {0, static_cast<uint32_t>(n_)};
    const int64_t place = loops_.find_overlap(kept_, &all, 1, box, box_area, threshold_);
    looked_at_ += place < 0 ? n_ : place;
    return place >= 0;
  }

  // Builds the grid if it would save more on the remaining boxes, at the cost of the last ones,
  // than it costs to build.
  void review() {
    const int64_t vectors = std::exchange(looked_at_, 0) / (kReview * loops_.lanes);
    const int64_t saved = (size_ - num_offers_) * (vectors - kQueryCost);
    if (saved < kFillCost * size_ || !prunes(threshold_)) return;
    grid_ = std::make_unique<SizeGrid<T>>(boxes_, members_, size_, threshold_.filter);
    for (int64_t i = 0; i < n_; ++i)
      grid_->insert({kept_.x1[i], kept_.y1[i], kept_.x2[i], kept_.y2[i]}, kept_.area[i]);
  }

  const Box<T>* boxes_;
  const Ranked<T>* members_;
  int64_t size_;
  NmsThreshold<T> threshold_;
  BoxPlanes<T> kept_;
  const NmsLoops<T>& loops_ = current_loops<NmsLoops<T>>();
  int64_t n_ = 0, num_offers_ = 0, looked_at_ = 0;
  std::unique_ptr<SizeGrid<T>> grid_;
};

}  // namespace fastdet::cpu
