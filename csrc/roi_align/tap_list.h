// SPDX-License-Identifier: BSD-3-Clause
// The rows or columns that RoIAlign's bins read on one axis of a RoI, with their weights. Taps that
// samples of a bin share are merged. It takes one pass over the samples that can lie on the map.
#pragma once

#include <algorithm>
#include <vector>

#include "../geometry/bilinear.h"
#include "taps.h"

namespace fastdet::cpu {

// A list can be built again and then reuses its memory.
template <typename S>
class TapList {
 public:
  void build(const RoiAxis<double>& axis, int64_t bins, int64_t size) {
    // Merged taps are hardly ever more.
    const int64_t taps = std::min(2 * bins * std::min(axis.samples, size), size + 2 * bins);
    begin_.reserve(bins + 1);
    index_.reserve(taps);
    weight_.reserve(taps);
    begin_.assign(1, 0);
    index_.clear();
    weight_.clear();
    for (int64_t p = 0; p < bins; ++p) {
      const SampleRange range = samples_within(axis, p, -1.0, static_cast<double>(size));
      for (int64_t i = range.begin; i < range.end; ++i) {
        const BilinearTap<double> tap = bilinear_tap(sample_position(axis, p, i), size);
        for (int k = 0; k < 2; ++k) add(tap.index[k], static_cast<S>(tap.weight[k]));
      }
      begin_.push_back(static_cast<int64_t>(index_.size()));
    }
    for (S& weight : weight_) weight /= static_cast<S>(axis.samples);
  }

  // The span begins and ends at multiples of a block if `size` allows it. So the loops have no
  // remainder, and each of their loads lies in one cache line.
  Taps<S> taps(int64_t size) const {
    const int64_t bins = static_cast<int64_t>(begin_.size()) - 1;
    if (index_.empty()) return {begin_.data(), nullptr, nullptr, bins, 0, 0};
    const auto [low, high] = std::minmax_element(index_.begin(), index_.end());
    const int64_t first = *low / kColumnBlock * kColumnBlock;
    const int64_t span =
        std::min((*high - first) / kColumnBlock * kColumnBlock + kColumnBlock, size);
    return {begin_.data(), index_.data(), weight_.data(), bins, std::min(first, size - span), span};
  }

 private:
  // Positions rise with the samples, so an index that the bin already has is one of the last two.
  // In an inverted RoI they fall, and some equal indices are not merged.
  void add(int64_t index, S weight) {
    if (weight == 0) return;
    const size_t bin_begin = begin_.back();
    for (size_t k = index_.size(); k > bin_begin && k + 2 > index_.size(); --k) {
      if (index_[k - 1] == index) {
        weight_[k - 1] += weight;
        return;
      }
    }
    index_.push_back(index);
    weight_.push_back(weight);
  }

  std::vector<int64_t> begin_, index_;
  std::vector<S> weight_;
};

}  // namespace fastdet::cpu
