// SPDX-License-Identifier: BSD-3-Clause
// Boxes by falling score, ties by rising index. The sort is a stable radix sort, one byte for each
// pass, over the bits of the scores, inverted so that they rise as the score falls. Rows are sorted
// only as far as they are needed: a caller that stops after k of n rows pays for a selection, O(n),
// and for the sort of a few times k rows. A box with a NaN score or a coordinate that is not finite
// is left out.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#include "../geometry/box.h"

namespace fastdet::cpu {

template <typename T>
struct Ranked {
  using Key = std::conditional_t<std::is_same_v<T, double>, uint64_t, uint32_t>;
  Key key;  // rises as the score falls; the same for -0 and 0
  uint32_t index;

  Ranked() = default;
  Ranked(T score, int64_t i) : index(static_cast<uint32_t>(i)) {
    constexpr Key sign = Key(1) << (8 * sizeof(Key) - 1);
    const Key bits = std::bit_cast<Key>(score + T(0));
    key = bits & sign ? bits : ~(bits | sign);
  }

  bool operator<(const Ranked& other) const {
    return key != other.key ? key < other.key : index < other.index;
  }
};

constexpr int64_t kSmallSort = 128;  // below this, a comparison sort is faster

// Sorts rows whose indices are in rising order.
template <typename T>
void radix_sort(std::vector<Ranked<T>>& rows) {
  constexpr int kBytes = sizeof(typename Ranked<T>::Key);
  std::array<std::array<uint32_t, 256>, kBytes> counts = {};
  for (const Ranked<T>& row : rows)
    for (int b = 0; b < kBytes; ++b) ++counts[b][(row.key >> (8 * b)) & 255];
  std::vector<Ranked<T>> other(rows.size());
  for (int b = 0; b < kBytes; ++b) {
    std::array<uint32_t, 256>& next = counts[b];
    if (next[(rows[0].key >> (8 * b)) & 255] == rows.size()) continue;  // all bytes equal
    uint32_t begin = 0;
    for (uint32_t& place : next) begin += std::exchange(place, begin);
    for (const Ranked<T>& row : rows) other[next[(row.key >> (8 * b)) & 255]++] = row;
    rows.swap(other);
  }
}

template <typename T>
class ScoreOrder {
 public:
  // `wanted`: how many rows the caller expects to need; it may still read all of them.
  ScoreOrder(const Box<T>* boxes, const T* scores, int64_t n, int64_t wanted) {
    if (n > INT32_MAX) throw std::length_error("NMS: more than 2^31 - 1 boxes in an image");
    rows_.reserve(n);
    bool sorted = true;
    for (int64_t i = 0; i < n; ++i) {
      if (std::isnan(scores[i]) || !is_finite(boxes[i])) continue;
      const Ranked<T> row(scores[i], i);
      sorted = sorted && (rows_.empty() || rows_.back().key <= row.key);
      rows_.push_back(row);
    }
    if (sorted) {
      num_sorted_ = size();
    } else if (wanted > size() / 4) {
      sort_all();
    } else {
      chunk_ = std::max<int64_t>(wanted, kSmallSort);
    }
  }

  int64_t size() const { return static_cast<int64_t>(rows_.size()); }

  // All usable boxes. Only the rows that are already sorted are in order.
  const Ranked<T>* rows() const { return rows_.data(); }

  // The box at rank r. The caller must have read all rows before it.
  uint32_t operator[](int64_t r) {
    if (r >= num_sorted_) sort_more();
    return rows_[r].index;
  }

 private:
  void sort_all() {
    if (size() < kSmallSort) {
      std::sort(rows_.begin(), rows_.end());
    } else {
      radix_sort(rows_);
    }
    num_sorted_ = size();
  }

  // Sorts the best `chunk_` of the remaining rows, and four times as many the next time.
  void sort_more() {
    const auto begin = rows_.begin() + num_sorted_;
    const int64_t end = std::min(size(), num_sorted_ + chunk_);
    if (end < size()) std::nth_element(begin, rows_.begin() + end, rows_.end());
    std::sort(begin, rows_.begin() + end);
    num_sorted_ = end;
    chunk_ *= 4;
  }

  std::vector<Ranked<T>> rows_;
  int64_t num_sorted_ = 0, chunk_ = 0;
};

}  // namespace fastdet::cpu
