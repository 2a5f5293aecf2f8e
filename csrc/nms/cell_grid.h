// SPDX-License-Identifier: BSD-3-Clause
// A grid of boxes for the search of the boxes that overlap a given one. Boxes are sorted by size
// level, and within a level by the cell of their centre, row by row. So the cells that a search
// must read are one run of boxes in each row.
//
// If the IoU of a and b is above t, their overlap is wider than t * max(width a, width b), because
// the intersection is at most the overlap's width times the height of either box. If the IoS is
// above t, the overlap is wider than t * min(width a, width b), because it is at least the share t
// of the smaller box. So the centres are closer than (width a + width b) / 2 minus that bound. The
// same holds in y.
//
// The grid never changes a result: the overlap of a pair that it skips is at most t in floating
// point too. kMargin covers the rounding errors; with tiny boxes, whose areas lose digits, t is 0.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "../geometry/overlap.h"
#include "nmm.loops.h"

namespace fastdet::cpu {

constexpr double kMargin = 1e-6;

// The cells of one axis.
class CellAxis {
 public:
  void include(double centre, double side) {
    low_ = std::min(low_, centre);
    high_ = std::max(high_, centre);
    longest_ = std::max(longest_, side);
  }

  // How many cells of the wanted size there are.
  double wanted_cells() const {
    constexpr double kMost = 1e9;
    return std::clamp((high_ - low_) / (kCellSides * longest_), 1.0, kMost);
  }

  void divide(int64_t cells) {
    cells_ = cells;
    per_pixel_ = static_cast<double>(cells) / (high_ - low_);  // not finite for one point
  }

  int64_t size() const { return cells_; }

  // Rises with the coordinate, or is 0 for all coordinates.
  int64_t cell(double centre) const {
    const double position = (centre - low_) * per_pixel_;
    return position > 0 ? static_cast<int64_t>(std::min(position, double(cells_ - 1))) : 0;
  }

  // The cells of the centres of all boxes that may overlap a box [low, high].
  std::pair<int64_t, int64_t> near(double low, double high, double t, OverlapMetric metric) const {
    const double side = high - low, middle = 0.5 * low + 0.5 * high;
    if (metric == OverlapMetric::kIou && longest_ < t * side) return {0, -1};
    const double reach = metric == OverlapMetric::kIou ? iou_reach(side, t) : ios_reach(side, t);
    const double margin = reach * kMargin + std::abs(middle) * 1e-15;
    return {cell(middle - reach - margin), cell(middle + reach + margin)};
  }

 private:
  static constexpr double kCellSides = 0.5;  // the side of a cell, as a share of the longest box

  // The largest distance of the centres, over all sides of a partner up to the longest.
  double iou_reach(double side, double t) const {
    const double partner = t < 0.5 ? std::min(longest_, side / t) : std::min(longest_, side);
    return 0.5 * side + 0.5 * partner - t * std::max(side, partner);
  }

  double ios_reach(double side, double t) const {
    const double other = 0.5 * side + 0.5 * longest_ - t * std::min(side, longest_);
    return std::max(0.5 * side, other);
  }

  double low_ = std::numeric_limits<double>::infinity(), high_ = -low_, longest_ = 0;
  double per_pixel_ = 0;
  int64_t cells_ = 1;
};

template <typename T>
class CellGrid {
 public:
  // Sorts boxes that can overlap others. Returns the place of each: in the order of the cells, and
  // within a cell in the order of the boxes.
  std::vector<uint32_t> sort(const std::vector<Box<T>>& boxes) {
    std::vector<uint8_t> level_of_box(boxes.size());
    T largest = 0;
    for (const Box<T>& box : boxes) largest = std::max(largest, longer_side(box));
    for (size_t j = 0; j < boxes.size(); ++j) {
      level_of_box[j] = level_of(largest / longer_side(boxes[j]));
      levels_[level_of_box[j]].include(boxes[j]);
    }
    for (Level& level : levels_)
      if (level.num_boxes > 0) divide(level);
    begin_.assign(num_cells_ + 2, 0);
    std::vector<uint32_t> places(boxes.size());
    for (size_t j = 0; j < boxes.size(); ++j) {
      places[j] = static_cast<uint32_t>(levels_[level_of_box[j]].cell(boxes[j]));
      ++begin_[places[j] + 2];
    }
    std::partial_sum(begin_.begin(), begin_.end(), begin_.begin());
    for (uint32_t& place : places) place = begin_[place + 1]++;
    begin_.pop_back();  // now cell c is [begin_[c], begin_[c + 1])
    return places;
  }

  // Calls body(rows) for rows of cells that hold all boxes whose metric with `box` may be above t,
  // which is less than the threshold by a margin for rounding errors.
  template <typename Body>
  void for_each_level(const Box<T>& box, double t, OverlapMetric metric, const Body& body) const {
    for (const Level& level : levels_) {
      if (level.num_boxes == 0) continue;
      if (metric == OverlapMetric::kIou && level.smallest * t > longer_side(box)) continue;
      const auto [left, right] = level.x.near(box.x1, box.x2, t, metric);
      const auto [top, bottom] = level.y.near(box.y1, box.y2, t, metric);
      if (left > right || top > bottom) continue;
      const int64_t stride = level.x.size();
      body(CellRows{begin_.data() + level.first_cell + top * stride + left, stride,
                    bottom - top + 1, right - left + 1});
    }
  }

 private:
  static constexpr int kLevels = 8;  // each has sides up to a factor of 4; the last, all smaller

  static T longer_side(const Box<T>& box) { return std::max(box.x2 - box.x1, box.y2 - box.y1); }

  static double centre(double low, double high) { return 0.5 * low + 0.5 * high; }

  struct Level {
    CellAxis x, y;
    int64_t num_boxes = 0, first_cell = 0;
    double smallest = std::numeric_limits<double>::infinity();  // of the longer sides

    void include(const Box<T>& box) {
      ++num_boxes;
      smallest = std::min<double>(smallest, longer_side(box));
      x.include(centre(box.x1, box.x2), double(box.x2) - box.x1);
      y.include(centre(box.y1, box.y2), double(box.y2) - box.y1);
    }

    int64_t cell(const Box<T>& box) const {
      const int64_t column = x.cell(centre(box.x1, box.x2)), row = y.cell(centre(box.y1, box.y2));
      return first_cell + row * x.size() + column;
    }
  };

  static uint8_t level_of(double quotient) {
    const auto exponent = static_cast<int>(std::bit_cast<uint64_t>(quotient) >> 52) - 1023;
    return static_cast<uint8_t>(std::clamp(exponent / 2, 0, kLevels - 1));
  }

  // At most 4 cells for each box.
  void divide(Level& level) {
    const double most = 4.0 * static_cast<double>(level.num_boxes);
    const double columns = level.x.wanted_cells(), rows = level.y.wanted_cells();
    const double shrink = std::min(1.0, std::sqrt(most / columns / rows));
    level.x.divide(static_cast<int64_t>(std::clamp(columns * shrink, 1.0, most)));
    level.y.divide(static_cast<int64_t>(std::clamp(rows * shrink, 1.0, most)));
    level.first_cell = num_cells_;
    num_cells_ += level.x.size() * level.y.size();
  }

  std::array<Level, kLevels> levels_;
  int64_t num_cells_ = 0;
  std::vector<uint32_t> begin_;
};

}  // namespace fastdet::cpu
