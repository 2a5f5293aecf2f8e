// SPDX-License-Identifier: BSD-3-Clause
// CUB's sorts, which are stable, through the standard library's.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "../../cuda_runtime.h"

namespace cub {

// Sorts keys[begin, end) by their bits [low, high) into sorted_keys, and the values along.
template <typename Key, typename Value>
void stable_sort_pairs(const Key* keys, Key* sorted_keys, const Value* values, Value* sorted_values,
                       int64_t begin, int64_t end, int low, int high, bool descending) {
  const auto digits = [&](int64_t i) {
    const uint64_t bits = static_cast<uint64_t>(keys[i]) >> low;
    return high - low < 64 ? bits & ((uint64_t(1) << (high - low)) - 1) : bits;
  };
  std::vector<int64_t> order(end - begin);
  std::iota(order.begin(), order.end(), begin);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return descending ? digits(a) > digits(b) : digits(a) < digits(b);
  });
  for (int64_t i = begin; i < end; ++i) {
    sorted_keys[i] = keys[order[i - begin]];
    sorted_values[i] = values[order[i - begin]];
  }
}

struct DeviceRadixSort {
  template <typename Key, typename Value>
  static cudaError_t SortPairs(void* workspace, size_t& bytes, const Key* keys, Key* sorted_keys,
                               const Value* values, Value* sorted_values, int64_t n, int low,
                               int high, cudaStream_t) {
    if (workspace)
      stable_sort_pairs(keys, sorted_keys, values, sorted_values, 0, n, low, high, false);
    bytes = 1;
    return cudaSuccess;
  }
};

struct DeviceSegmentedRadixSort {
  template <typename Key, typename Value, typename Offset>
  static cudaError_t SortPairsDescending(void* workspace, size_t& bytes, const Key* keys,
                                         Key* sorted_keys, const Value* values,
                                         Value* sorted_values, int64_t, int64_t num_segments,
                                         const Offset* begins, const Offset* ends, int low,
                                         int high, cudaStream_t) {
    for (int64_t s = 0; workspace && s < num_segments; ++s)
      stable_sort_pairs(keys, sorted_keys, values, sorted_values, begins[s], ends[s], low, high,
                        true);
    bytes = 1;
    return cudaSuccess;
  }
};

}  // namespace cub
