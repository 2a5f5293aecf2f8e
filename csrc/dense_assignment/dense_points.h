// SPDX-License-Identifier: BSD-3-Clause
// Points in blocks, and boxes as arrays, for the loops that search them. Plain C++, no torch.
#pragma once

#include <limits>
#include <vector>

#include "dense_points.loops.h"

namespace fastdet::cpu {

// Boxes as arrays, padded with boxes that touch nothing; a new one is such a box, too.
template <typename S>
class BoxTable {
 public:
  explicit BoxTable(int64_t n)
      : low_(2 * padded_to_lanes(n), std::numeric_limits<S>::infinity()),
        high_(low_.size(), -std::numeric_limits<S>::infinity()),
        stride_(padded_to_lanes(n)) {}

  void set(int64_t i, const Box<S>& box) {
    low_[i] = box.x1, low_[stride_ + i] = box.y1;
    high_[i] = box.x2, high_[stride_ + i] = box.y2;
  }

  // From box `first` on, a multiple of kPointLanes.
  BoxArrays<S> from(int64_t first) const {
    const S *low = low_.data() + first, *high = high_.data() + first;
    return {low, low + stride_, high, high + stride_};
  }

 private:
  std::vector<S> low_, high_;
  int64_t stride_;
};

template <typename S>
class DensePoints {
 public:
  DensePoints(const S* points, int64_t n)
      : num_blocks_((n + kPointBlock - 1) / kPointBlock),
        x_(num_blocks_ * kPointBlock),
        y_(x_),
        hulls_(num_blocks_) {
    std::vector<Box<S>> hulls(num_blocks_);
    current_loops<PointLoops<S>>().load_points(points, n, x_.data(), y_.data(), hulls.data());
    for (int64_t b = 0; b < num_blocks_; ++b) hulls_.set(b, hulls[b]);
  }

  PointPlanes<S> planes() const { return {x_.data(), y_.data(), hulls_.from(0), num_blocks_}; }

 private:
  int64_t num_blocks_;
  std::vector<S> x_, y_;
  BoxTable<S> hulls_;
};

}  // namespace fastdet::cpu
